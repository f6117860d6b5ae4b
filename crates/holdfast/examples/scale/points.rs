//! The points, as the issue states them, each with its bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_api::{Client, NewOwner, VolumeStatus, WhichVolumes};
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, Use};
use crate::drained::Held;
use crate::figures;
use crate::load::{Traffic, fill};
use crate::table::{Bound, Row, Table};

const GIB: u64 = 1 << 30;
const MIB: f64 = (1 << 20) as f64;
/// What creation, takeovers and deletion leave to do is over by then.
const SETTLE: Duration = Duration::from_secs(10);
/// For so long an idle cluster is watched.
const WATCH: Duration = Duration::from_secs(30);
/// For so long a killed node is away.
const AWAY: Duration = Duration::from_secs(30);
/// Anything that has not come about by then never will.
const LIMIT: Duration = Duration::from_secs(120);
/// After a point that failed.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);
/// Volumes under load, and those of them that the killed node owns.
const LOADED: usize = 50;
const OWNED_BY_ONE: usize = 20;
/// Used slices at point 5, and the volumes they lie in, for a thousand volumes.
const SLICES: u64 = 20_000;
const FILLED: usize = 200;
/// Volumes made at the same time where that is not what is measured.
const MADE_AT_ONCE: usize = 4;
/// Prefixes of names: of the thousand volumes, and of those for listings.
const THOUSAND: &str = "tera-";
const LISTED: &str = "list-";

/// A running bench.
pub(crate) struct Bench {
    cluster: Cluster,
    volumes: u32,
    /// Of each of them.
    size_gib: u64,
    table: Table,
    /// What comes before a point's number: points are repeated with data.
    within: &'static str,
    /// Used before there were any volumes.
    empty: Option<(Use, u64)>,
    /// Loads so far: each has blocks of its own.
    loads: u64,
    /// What the node to be drained holds.
    held: Held,
}

impl Bench {
    pub(crate) fn new(cluster: Cluster, volumes: u32, size_gib: u64, held: Held) -> Self {
        Self {
            cluster,
            volumes,
            size_gib,
            table: Table::default(),
            within: "",
            empty: None,
            loads: 0,
            held,
        }
    }

    pub(crate) fn held(&self) -> Held {
        self.held
    }

    /// Where directories of nodes go.
    pub(crate) fn place(&self) -> PathBuf {
        self.cluster.place()
    }

    pub(crate) fn binary(&self) -> PathBuf {
        self.cluster.binary()
    }

    /// Measures one point. What goes wrong is a row that has missed its bound.
    pub(crate) async fn point(&mut self, point: u8) {
        println!("\npoint {}{point}", self.within);
        let outcome = match point {
            1 => self.large_and_small().await,
            2 => self.thousand().await,
            3 => self.killed_owner().await,
            4 => self.power_cut().await,
            5 => Box::pin(self.with_data()).await,
            6 => self.listings().await,
            7 => Box::pin(self.drained()).await,
            8 => self.deleted().await,
            _ => Err(anyhow::anyhow!("there is no such point")),
        };
        if let Err(error) = outcome {
            let what = "cannot be measured any further";
            self.row(point, what, None, "", Bound::Measured, format!("{error:#}"));
            self.recover().await;
        }
    }

    /// Stops the nodes and answers the table.
    pub(crate) async fn end(mut self) -> anyhow::Result<Table> {
        self.cluster.fleet.kill_all().await?;
        Ok(self.table)
    }

    /// After a failure the next point begins with all nodes running, if they can.
    async fn recover(&mut self) {
        for index in 0..self.cluster.nodes() {
            if self.cluster.fleet.pid(index).is_none()
                && let Err(error) = self.cluster.fleet.start(index, None)
            {
                println!("node {} cannot be started: {error}", index + 1);
            }
        }
        let cluster = &self.cluster;
        let whole = cluster.wait_for(RECOVERY_LIMIT, "a whole cluster", async || {
            cluster.is_whole().await
        });
        if let Err(error) = whole.await {
            println!("{error:#}");
        }
    }

    pub(crate) fn row(
        &mut self,
        point: u8,
        what: &str,
        value: Option<f64>,
        unit: &'static str,
        bound: Bound,
        note: impl Into<String>,
    ) {
        self.table.add(Row {
            point: format!("{}{point}", self.within),
            what: what.to_owned(),
            value,
            unit,
            bound,
            note: note.into(),
        });
    }

    fn ms(&mut self, point: u8, what: &str, value: Duration, most_ms: f64) {
        let value = Some(value.as_secs_f64() * 1e3);
        self.row(point, what, value, "ms", Bound::AtMost(most_ms), "");
    }

    /// Used by a cluster without volumes, noted once.
    async fn note_empty(&mut self) -> anyhow::Result<()> {
        if self.empty.is_none() && self.cluster.volumes("").await?.is_empty() {
            sleep(SETTLE).await;
            let usage = self.cluster.usage()?;
            let facts = figures::facts_bytes(self.cluster.fleet.directory(0))?;
            self.empty = Some((usage, facts));
        }
        Ok(())
    }

    async fn large_and_small(&mut self) -> anyhow::Result<()> {
        self.note_empty().await?;
        let mut medians = Vec::new();
        for (what, bytes) in [("1 GiB", GIB), ("64 TiB", 64 << 40)] {
            let (mut created, mut opened) = (Vec::new(), Vec::new());
            for number in 0..5 {
                let name = format!("size-{number}");
                let made = self.cluster.create(&name, bytes).await;
                let removed = self.cluster.delete(&name).await;
                let made = made.with_context(|| what.to_owned())?;
                removed?;
                created.push(made.created);
                opened.push(made.opened - made.created);
            }
            let (created, opened) = (median(&mut created), median(&mut opened));
            self.ms(1, &format!("a volume of {what} is made"), created, 300.0);
            self.ms(1, &format!("and opens, {what}"), opened, 1000.0);
            medians.push((created + opened).as_secs_f64() * 1e3);
        }
        let more = medians[1] - medians[0];
        let what = "how much longer 64 TiB take than 1 GiB";
        let bound = Bound::AtMost((medians[0] * 0.5).max(30.0));
        self.row(1, what, Some(more), "ms", bound, "noise: half, or 30 ms");
        Ok(())
    }

    /// Makes the volumes that are missing of the thousand; answers how long each took.
    async fn make_thousand(&mut self) -> anyhow::Result<Vec<Duration>> {
        self.note_empty().await?;
        let there = self.cluster.volumes(THOUSAND).await?;
        let there: BTreeSet<String> = there.into_iter().map(|volume| volume.name).collect();
        let missing = (0..self.volumes).map(|number| format!("{THOUSAND}{number:05}"));
        let missing: Vec<String> = missing.filter(|name| !there.contains(name)).collect();
        let mut took = Vec::new();
        let begun = Instant::now();
        for name in &missing {
            took.push(self.cluster.make(name, self.size_gib * GIB).await?);
            if took.len() % 100 == 0 {
                println!("{} volumes after {:.1?}", took.len(), begun.elapsed());
            }
        }
        Ok(took)
    }

    async fn thousand(&mut self) -> anyhow::Result<()> {
        let repeated = !self.within.is_empty();
        self.cluster.forget_stalls().await?;
        let mut took = self.make_thousand().await?;
        if repeated {
            // They are there: what is measured is a hundred more of them.
            for number in 0..200.min(self.volumes) {
                let name = format!("more-{number:05}");
                took.push(self.cluster.make(&name, self.size_gib * GIB).await?);
                self.cluster.delete(&name).await?;
            }
        }
        let part = (took.len() / 10).clamp(1, 100);
        if took.len() >= 2 * part {
            let mean = |part: &[Duration]| {
                part.iter().sum::<Duration>().as_secs_f64() * 1e3 / part.len() as f64
            };
            let (first, last) = (mean(&took[..part]), mean(&took[took.len() - part..]));
            let what = format!("creation of the last {part} against the first");
            let note = format!("{first:.1} ms, {last:.1} ms each");
            self.row(2, &what, Some(last / first), "x", Bound::AtMost(1.3), note);
        }
        let open = self.wait_until_all_serve("every volume to open").await?;
        self.ms(2, "all are open, after the last was made", open, 1000.0);
        let (node, stalls) = self.cluster.longest_stall().await?;
        let note = format!(
            "node {node}, in {}, {} over 20 ms",
            stalls.longest_in, stalls.count
        );
        let longest = Some(stalls.longest_us as f64 / 1e3);
        let what = "longest stall of any node's thread meanwhile";
        self.row(2, what, longest, "ms", Bound::AtMost(20.0), note);
        sleep(SETTLE).await;
        let before = self.cluster.usage()?;
        let resident = Some(before.resident_most() as f64 / MIB);
        let what = "memory of the largest node";
        self.row(2, what, resident, "MiB", Bound::AtMost(200.0), "");
        sleep(WATCH).await;
        let idle = self.cluster.usage()?.percent_since(&before);
        let what = "idle processor time, all nodes";
        self.row(2, what, Some(idle), "%", Bound::AtMost(1.0), "of a core");
        Ok(())
    }

    async fn wait_until_all_serve(&self, what: &str) -> anyhow::Result<Duration> {
        let cluster = &self.cluster;
        let waiting = cluster.wait_for(LIMIT, what, async || cluster.all_serve().await);
        waiting.await
    }

    /// Volumes for the load, many of them with one owner; that owner, and which it owns.
    async fn choose_loaded(&self) -> anyhow::Result<(Vec<VolumeStatus>, u64, Vec<String>)> {
        let mut chosen = self.cluster.volumes(THOUSAND).await?;
        chosen.truncate(LOADED);
        let wanted = OWNED_BY_ONE.min(chosen.len() * 2 / 5).max(1);
        let mut owned: BTreeMap<u64, usize> = BTreeMap::new();
        // The first node is asked all the time: another one is killed.
        for owner in chosen.iter().filter_map(|volume| volume.owner) {
            if owner != 1 {
                *owned.entry(owner).or_default() += 1;
            }
        }
        let busiest = owned.iter().max_by_key(|(_, count)| **count);
        let (victim, _) = busiest.context("no volume has an owner")?;
        let mut names = Vec::new();
        for volume in &chosen {
            let holds = volume.holders.iter().any(|one| one.node == *victim);
            if volume.owner == Some(*victim) {
                names.push(volume.name.clone());
            } else if names.len() < wanted && holds {
                let to = NewOwner {
                    node: *victim,
                    view: None,
                    balance: false,
                };
                self.cluster.client().move_volume(&volume.name, &to).await?;
                names.push(volume.name.clone());
            }
        }
        Ok((chosen, *victim, names))
    }

    async fn killed_owner(&mut self) -> anyhow::Result<()> {
        self.make_thousand().await?;
        self.wait_until_all_serve("every volume to open").await?;
        let (chosen, victim, owned) = self.choose_loaded().await?;
        let index = self.cluster.fleet.index_of(victim);
        let index = index.context("the owner is no node of this cluster")?;
        let targets = chosen
            .iter()
            .map(|one| (one.name.clone(), one.target.clone()));
        let targets: Vec<(String, String)> = targets.collect();
        // Another region each time: it has to read as zeroes at first.
        let first_block = self.loads * 1024;
        self.loads += 1;
        let portals = self.cluster.fleet.portals();
        let seed = 1000 * self.loads;
        let traffic = Traffic::start(&portals, &targets, first_block, seed).await?;
        sleep(Duration::from_secs(3)).await;
        println!(
            "node {victim} is killed: it owns {} of {}",
            owned.len(),
            chosen.len()
        );
        let killed = Instant::now();
        self.cluster.fleet.kill(&[index]).await?;
        let first = traffic.first_after(&owned, killed, LIMIT).await;
        let mut first = first.context("after the owner was killed")?;
        let note = format!("{} volumes of node {victim}", first.len());
        let worst = first.iter().max().copied().unwrap_or_default();
        let middle = Some(median(&mut first).as_secs_f64() * 1e3);
        let what = "first I/O after the owner was killed, median";
        self.row(3, what, middle, "ms", Bound::AtMost(1000.0), note);
        self.ms(3, "the same, worst", worst, 2000.0);
        sleep(AWAY.saturating_sub(killed.elapsed())).await;
        self.cluster.fleet.start(index, None)?;
        let cluster = &self.cluster;
        let whole = cluster.wait_for(LIMIT, "all copies to be in sync again", async || {
            cluster.is_whole().await
        });
        let whole = whole.await?;
        self.ms(3, "all in sync after its return", whole, 5000.0);
        let operations = traffic.stop().await?;
        println!("{operations} I/Os, all as they should be");
        Ok(())
    }

    async fn power_cut(&mut self) -> anyhow::Result<()> {
        self.make_thousand().await?;
        self.wait_until_all_serve("every volume to open").await?;
        self.cluster.fleet.kill_all().await?;
        for index in 0..self.cluster.nodes() {
            self.cluster.fleet.start(index, None)?;
        }
        let what = "every volume to open after all nodes were killed";
        let open = self.wait_until_all_serve(what).await?;
        let what = "every volume is open after the last start of all nodes";
        self.ms(4, what, open, 10_000.0);
        Ok(())
    }

    async fn with_data(&mut self) -> anyhow::Result<()> {
        self.make_thousand().await?;
        self.wait_until_all_serve("every volume to open").await?;
        let share = f64::from(self.volumes) / 1000.0;
        let filled = ((FILLED as f64 * share) as usize).max(2);
        let slices = (SLICES / FILLED as u64).min(self.size_gib);
        let volumes = self.cluster.volumes(THOUSAND).await?;
        let targets = volumes.into_iter().take(filled).map(|one| one.target);
        let targets: Vec<String> = targets.collect();
        let used = filled as u64 * slices;
        let before = self.cluster.usage()?;
        let directory = self.cluster.fleet.directory(0).to_owned();
        let facts_before = figures::facts_bytes(&directory)?;
        println!("4 KiB in each of {used} slices of {filled} volumes");
        let begun = Instant::now();
        let portals = self.cluster.fleet.portals();
        fill(&portals, &targets, slices, |count| {
            if count % 20 == 0 || count == filled {
                println!("{count} volumes after {:.1?}", begun.elapsed());
            }
        })
        .await?;
        let each = begun.elapsed().as_secs_f64() * 1e3 / used as f64;
        let none = Bound::None;
        self.row(
            5,
            "a first write to a slice, 16 at once",
            Some(each),
            "ms",
            none,
            "",
        );
        sleep(SETTLE).await;
        let after = self.cluster.usage()?;
        // Each slice has three copies.
        let copies = (used * 3) as f64;
        let grown = |part: fn(&Use) -> &Vec<u64>| {
            let sum = |usage| part(usage).iter().sum::<u64>() as f64;
            (sum(&after) - sum(&before)) / copies
        };
        let resident = grown(|usage| &usage.resident_bytes);
        self.row(
            5,
            "memory for each used copy",
            Some(resident),
            "B",
            none,
            "",
        );
        let written = grown(|usage| &usage.written_bytes);
        let what = "written to disk for each first write and copy";
        self.row(5, what, Some(written), "B", none, "data of 4096 B among it");
        let facts = figures::facts_bytes(&directory)? as f64 - facts_before as f64;
        let per_copy = facts / (copies / self.cluster.nodes() as f64);
        self.row(
            5,
            "facts for each used copy",
            Some(per_copy),
            "B",
            none,
            "on disk",
        );
        self.within = "5:";
        for point in 1..=4 {
            self.point(point).await;
        }
        self.within = "";
        // A node that does not run: its files stand still.
        self.cluster.fleet.kill(&[4]).await?;
        let directory = self.cluster.fleet.directory(4).to_owned();
        let snapshot = figures::snapshot_bytes(&directory, 5);
        self.cluster.fleet.start(4, None)?;
        let snapshot = snapshot? as f64;
        let note = format!("{} volumes, {used} used slices", self.volumes);
        self.row(
            5,
            "config state",
            Some(snapshot / 1024.0),
            "KiB",
            none,
            note,
        );
        let what = "config state for each used slice, volumes among it";
        self.row(5, what, Some(snapshot / used as f64), "B", none, "");
        self.recover().await;
        Ok(())
    }

    async fn listings(&mut self) -> anyhow::Result<()> {
        let wanted = self.volumes as usize * 10;
        let there = self.cluster.volumes("").await?.len();
        let missing = wanted.saturating_sub(there);
        println!("{missing} more volumes are made through the API, for {wanted} in all");
        let begun = Instant::now();
        let cluster = &self.cluster;
        let names = (0..missing).map(|number| format!("{LISTED}{number:05}"));
        let mut making = stream::iter(names)
            .map(async |name| cluster.make(&name, GIB).await)
            .buffer_unordered(MADE_AT_ONCE);
        let mut count = 0;
        while making.try_next().await?.is_some() {
            count += 1;
            if count % 1000 == 0 {
                println!("{count} after {:.1?}", begun.elapsed());
            }
        }
        drop(making);
        self.wait_until_all_serve("every volume to open").await?;
        let client = self.cluster.client().clone();
        let pages = middle(async || timed(list_all(&client)).await).await?;
        let what = format!("all pages of GET /v1/volumes, {wanted} volumes");
        self.ms(6, &what, pages, 100.0);
        let status = middle(async || timed(client.cluster()).await).await?;
        self.ms(6, "GET /v1/cluster", status, 100.0);
        for words in [
            &["volume", "list"][..],
            &["volume", "list", "-o", "json"],
            &["cluster", "status"],
        ] {
            let cluster = &self.cluster;
            let took = middle(async || cluster.command(words).await).await?;
            self.ms(6, &format!("holdfast {}", words.join(" ")), took, 200.0);
        }
        println!("they are deleted again");
        self.delete_all(LISTED).await
    }

    async fn delete_all(&self, prefix: &str) -> anyhow::Result<()> {
        let cluster = &self.cluster;
        let names = cluster.volumes(prefix).await?;
        stream::iter(names)
            .map(async |volume| cluster.delete(&volume.name).await)
            .buffer_unordered(MADE_AT_ONCE)
            .try_collect()
            .await
    }

    async fn deleted(&mut self) -> anyhow::Result<()> {
        self.make_thousand().await?;
        let Some((empty, facts_empty)) = self.empty.clone() else {
            bail!("there were volumes from the start: nothing to compare with");
        };
        let begun = Instant::now();
        self.delete_all("").await?;
        let count = self.volumes;
        let took = Some(begun.elapsed().as_secs_f64());
        let what = format!("deleting {count} volumes takes");
        self.row(8, &what, took, "s", Bound::None, "");
        // What an allocator keeps for the next request is not what volumes cost.
        let resident_most = empty.resident_most() as f64 * 1.25 + 8.0 * MIB;
        let facts_most = facts_empty + (1 << 20);
        let directory = self.cluster.fleet.directory(0).to_owned();
        let cluster = &self.cluster;
        let back = cluster.wait_for(LIMIT, "memory and facts to come back", async || {
            let resident = cluster.usage()?.resident_most() as f64;
            let facts = figures::facts_bytes(&directory)?;
            if resident > resident_most || facts > facts_most {
                bail!(
                    "{:.1} MiB of memory, at most {:.1}; {facts} bytes of facts, at most \
                     {facts_most}",
                    resident / MIB,
                    resident_most / MIB
                );
            }
            Ok(true)
        });
        let back = back.await.map(|_| begun.elapsed());
        let (value, note) = match back {
            Ok(back) => (Some(back.as_secs_f64()), String::new()),
            Err(error) => (None, format!("{error:#}")),
        };
        let what = "memory and facts are back";
        self.row(8, what, value, "s", Bound::AtMost(60.0), note);
        self.cluster.fleet.kill(&[4]).await?;
        let directory = self.cluster.fleet.directory(4).to_owned();
        let snapshot = figures::snapshot_bytes(&directory, 5);
        self.cluster.fleet.start(4, None)?;
        let snapshot = Some(snapshot? as f64 / 1024.0);
        let what = "config state without volumes";
        self.row(8, what, snapshot, "KiB", Bound::AtMost(64.0), "");
        Ok(())
    }
}

async fn list_all(client: &Client) -> anyhow::Result<usize> {
    let mut which = WhichVolumes::default();
    let mut count = 0;
    loop {
        let page = client.volume_page(&which).await?;
        count += page.volumes.len();
        match page.next_cursor {
            None => return Ok(count),
            cursor => which.cursor = cursor,
        }
    }
}

async fn timed<T, E: Into<anyhow::Error>>(
    asking: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    asking.await.map_err(Into::into)?;
    Ok(begun.elapsed())
}

/// The median of five.
async fn middle(
    mut measure: impl AsyncFnMut() -> anyhow::Result<Duration>,
) -> anyhow::Result<Duration> {
    let mut took = Vec::new();
    for _ in 0..5 {
        took.push(measure().await?);
    }
    Ok(median(&mut took))
}

fn median(durations: &mut [Duration]) -> Duration {
    durations.sort_unstable();
    durations
        .get(durations.len() / 2)
        .copied()
        .unwrap_or_default()
}
