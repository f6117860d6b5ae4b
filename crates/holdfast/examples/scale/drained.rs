//! Point 7: a node with much data in many slices is drained under load, then removed.
//!
//! The cluster is one of its own, of six nodes. Slices are placed by their first write, so all of
//! them get 4 KiB first; then those that the node to be drained has a copy of are filled.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_api::{Client, NodeState, NodeStatus, VolumeStatus, WhichSlices, WhichVolumes};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::cluster::Cluster;
use crate::load::{self, Traffic};
use crate::points::Bench;
use crate::table::Bound;

const POINT: u8 = 7;
const NODES: usize = 6;
/// Of three copies on six nodes, each has a half.
const SHARE: u64 = 2;
/// Slices of one volume.
const SLICES_EACH: u64 = 50;
/// Volumes under load.
const LOADED: usize = 30;
/// How often the cluster is asked whether a slice lacks a copy.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The journals are emptied meanwhile, so that what is moved does not compete with that.
const SETTLE: Duration = Duration::from_secs(10);
/// Load before the drain begins.
const BEFORE: Duration = Duration::from_secs(5);
const DRAIN_LIMIT: Duration = Duration::from_secs(1800);
const END_LIMIT: Duration = Duration::from_secs(30);
const PREFIX: &str = "full-";
const MIB: f64 = (1 << 20) as f64;

/// What the node to be drained shall hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) slices: u64,
    pub(crate) mib: u64,
}

/// What was seen of all slices while the drain went on.
#[derive(Debug, Default)]
struct Watched {
    looks: u64,
    /// Between two looks.
    longest: Duration,
    /// Looks that saw a slice with too few copies, and the first of them.
    short: u64,
    example: Option<String>,
}

impl Bench {
    pub(crate) async fn drained(&mut self) -> anyhow::Result<()> {
        let place = self.place().join("drained");
        std::fs::create_dir_all(&place)?;
        let mut cluster = Cluster::start(self.binary(), place, NODES).await?;
        let outcome = self.drain_one(&mut cluster).await;
        cluster.fleet.kill_all().await?;
        outcome
    }

    async fn drain_one(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        // The leader of the config group has most to give away.
        let leader = cluster.client().cluster().await?.leader;
        let victim = leader.context("the config group has no leader")?;
        let index = cluster.fleet.index_of(victim).context("a strange leader")?;
        cluster.asked = usize::from(index == 0);
        let held = self.held();
        let before = self.fill_for(cluster, victim, held).await?;
        let holds = before.copies_bytes.context("the node says what it holds")?;
        let others = sum_of_others(cluster, victim).await?;
        let client = cluster.client().clone();
        let volumes = loaded(cluster, victim).await?;
        let targets = volumes
            .iter()
            .map(|one| (one.name.clone(), one.target.clone()));
        let targets: Vec<(String, String)> = targets.collect();
        let traffic = Traffic::start(&cluster.fleet.portals(), &targets, 0, 7_000).await?;
        sleep(BEFORE).await;
        println!(
            "node {victim} is drained: {} copies, {:.0} MiB; {} volumes under load",
            before.copies,
            holds as f64 / MIB,
            targets.len()
        );
        let calm = traffic.longest_since(None);
        let begun = Instant::now();
        client.drain(victim).await?;
        let (took, last, watched) = watch(&client, victim).await?;
        let worst = traffic.longest_since(Some(begun));
        let drain = last.drain.context("it is drained")?;
        let note = format!(
            "{} copies, {:.0} MiB; {:.1} MiB/s",
            before.copies,
            holds as f64 / MIB,
            drain.bytes_moved as f64 / MIB / took.as_secs_f64()
        );
        let seconds = Some(took.as_secs_f64());
        let what = "draining a node under load takes";
        self.row(POINT, what, seconds, "s", Bound::Measured, note);
        let moved = Some(drain.bytes_moved as f64 / holds.max(1) as f64);
        let what = "bytes moved, against what it held";
        self.row(POINT, what, moved, "x", Bound::AtMost(1.05), "");
        let more = sum_of_others(cluster, victim).await?.saturating_sub(others);
        let more = Some(more as f64 / holds.max(1) as f64);
        let what = "what the other nodes hold more, against that";
        self.row(
            POINT,
            what,
            more,
            "x",
            Bound::AtMost(1.05),
            "the load's own among it",
        );
        let note = match watched.example {
            Some(example) => format!("such as {example}"),
            None => format!(
                "{} looks, at most {} ms apart",
                watched.looks,
                watched.longest.as_millis()
            ),
        };
        let what = "looks that saw a slice below its redundancy";
        let short = Some(watched.short as f64);
        self.row(POINT, what, short, "", Bound::AtMost(0.0), note);
        let note = format!("before the drain {} ms", calm.as_millis());
        let worst = Some(worst.as_secs_f64() * 1e3);
        self.row(
            POINT,
            "longest I/O under the drain",
            worst,
            "ms",
            Bound::None,
            note,
        );

        let ended = remove(cluster, victim, index).await?;
        let what = "a removed node's process says so and ends";
        self.row(
            POINT,
            what,
            Some(ended.as_secs_f64() * 1e3),
            "ms",
            Bound::AtMost(10_000.0),
            "",
        );
        sleep(BEFORE).await;
        let operations = traffic.stop().await?;
        let note = format!("{operations} I/Os, all blocks as written");
        self.row(POINT, "I/O errors", Some(0.0), "", Bound::AtMost(0.0), note);
        Ok(())
    }

    /// Fills slices until the node holds what it shall, or nearly.
    async fn fill_for(
        &self,
        cluster: &Cluster,
        victim: u64,
        held: Held,
    ) -> anyhow::Result<NodeStatus> {
        let slices = held.slices * SHARE;
        let each = SLICES_EACH.min(slices).max(1);
        let names = (0..slices.div_ceil(each)).map(|number| format!("{PREFIX}{number:04}"));
        for name in names {
            cluster.make(&name, each << 30).await?;
        }
        let volumes = cluster.volumes(PREFIX).await?;
        let targets: Vec<String> = volumes.iter().map(|one| one.target.clone()).collect();
        let portals = cluster.fleet.portals();
        println!("4 KiB in each of {} slices", each * targets.len() as u64);
        load::fill(&portals, &targets, each, |_| {}).await?;
        let client = cluster.client();
        let mut filled: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut count = 0;
        for volume in &volumes {
            let on = slices_on(client, &volume.name, victim).await?;
            count += on.len() as u64;
            filled.insert(volume.target.clone(), on);
        }
        ensure!(count > 0, "node {victim} has no copy");
        let bytes = (held.mib << 20) / count;
        println!("{:.1} MiB in each of {count} slices", bytes as f64 / MIB);
        let begun = Instant::now();
        let mut filling = stream::iter(filled)
            .map(|(target, slices)| load::fill_slices(&portals, target, slices, bytes))
            .buffer_unordered(4);
        while filling.try_next().await?.is_some() {}
        println!("they are filled after {:.1?}", begun.elapsed());
        sleep(SETTLE).await;
        Ok(client.node(victim).await?)
    }
}

/// The slices of a volume that a node has a copy of.
async fn slices_on(client: &Client, name: &str, node: u64) -> anyhow::Result<Vec<u64>> {
    let page = client.slice_page(name, &WhichSlices::default()).await?;
    ensure!(page.next_cursor.is_none(), "a volume of a thousand slices");
    let on = page.slices.into_iter().filter(|slice| {
        let copies = &slice.copies;
        copies.iter().any(|copy| copy.node == node)
    });
    Ok(on.map(|slice| slice.slice).collect())
}

/// Some of the volumes that the node owns, and as many others.
async fn loaded(cluster: &Cluster, victim: u64) -> anyhow::Result<Vec<VolumeStatus>> {
    let volumes = cluster.volumes(PREFIX).await?;
    let (mut own, mut others): (Vec<VolumeStatus>, Vec<VolumeStatus>) = volumes
        .into_iter()
        .partition(|one| one.owner == Some(victim));
    own.truncate(LOADED / 2);
    others.truncate(LOADED - own.len());
    own.append(&mut others);
    Ok(own)
}

/// Bytes that the other nodes hold.
async fn sum_of_others(cluster: &Cluster, victim: u64) -> anyhow::Result<u64> {
    let nodes = cluster.client().nodes(Default::default()).await?;
    let others = nodes.iter().filter(|node| node.id != victim);
    let bytes = others.map(|node| {
        let bytes = node.copies_bytes;
        bytes.with_context(|| format!("node {} does not say what it holds", node.id))
    });
    bytes.sum()
}

/// Looks on until nothing is left on the node.
async fn watch(client: &Client, victim: u64) -> anyhow::Result<(Duration, NodeStatus, Watched)> {
    let impaired = WhichVolumes {
        impaired: true,
        ..WhichVolumes::default()
    };
    let begun = Instant::now();
    let mut watched = Watched::default();
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = Instant::now();
    loop {
        ticks.tick().await;
        watched.longest = watched.longest.max(looked.elapsed());
        looked = Instant::now();
        watched.looks += 1;
        // One that is taken over at this moment is listed, too.
        let page = client.volume_page(&impaired).await?;
        let short = page.volumes.iter().find(|one| !one.redundancy.is_full());
        if let Some(short) = short {
            watched.short += 1;
            let example = format!("{}: {}", short.name, short.explanation);
            watched.example.get_or_insert(example);
        }
        if watched.looks % 5 != 0 {
            continue;
        }
        let node = client.node(victim).await?;
        let drain = node.drain.as_ref().context("the drain is over")?;
        if drain.drained {
            return Ok((begun.elapsed(), node, watched));
        }
        if watched.looks % 100 == 0 {
            println!("{}", node.explanation);
        }
        if begun.elapsed() > DRAIN_LIMIT {
            bail!("after {} s: {}", DRAIN_LIMIT.as_secs(), node.explanation);
        }
    }
}

/// Removes the node; answers how long its process goes on after that.
async fn remove(cluster: &mut Cluster, victim: u64, index: usize) -> anyhow::Result<Duration> {
    let removed = cluster.client().remove_node(victim).await?;
    let begun = Instant::now();
    ensure!(
        removed.state == NodeState::Evicted,
        "{}",
        removed.explanation
    );
    let ended = timeout(END_LIMIT, cluster.fleet.reap(index)).await;
    let status = ended.context("the removed node goes on")??;
    let took = begun.elapsed();
    let log = std::fs::read_to_string(cluster.fleet.log(index))?;
    ensure!(
        !status.success() && log.contains("was evicted"),
        "the removed node ended with {status} and did not say why"
    );
    Ok(took)
}
