//! One run: a cluster, clients, faults one after another, and what came of it.

use std::path::Path as FilePath;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{sleep, timeout};

use crate::cluster::Cluster;
use crate::faults::{Class, Means, Pace};
use crate::host::Host;
use crate::ledger::{Doer, seconds};
use crate::nemesis::Nemesis;
use crate::network::Network;
use crate::random::Random;
use crate::report::{Report, Strictness, rows};
use crate::resident;
use crate::world::{VOLUME_SIZE, World};

/// Clients end after the command that is under way.
const CLIENTS_LIMIT: Duration = Duration::from_secs(60);
const READ_BACK_LIMIT: Duration = Duration::from_secs(10);
const READ_BACK_BLOCKS: usize = 8;
/// This program's clockwork is looked at so often.
const TICK: Duration = Duration::from_millis(5);

/// What is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) seed: u64,
    pub(crate) time: Duration,
    pub(crate) volumes: usize,
    pub(crate) hosts: u32,
    pub(crate) pace: Pace,
    /// If empty, all that are possible here.
    pub(crate) classes: Vec<Class>,
    pub(crate) bounds: Strictness,
}

/// Makes the cluster and its volumes.
pub(crate) async fn cluster(
    binary: &FilePath,
    directory: &FilePath,
    nodes: usize,
    volumes: usize,
    is_confined: bool,
) -> anyhow::Result<Cluster> {
    let network = if is_confined {
        Network::with_namespaces(nodes).await?
    } else {
        Network::with_loopback(nodes)
    };
    let begun = Instant::now();
    let mut cluster = Cluster::prepare(binary, directory, network, nodes, is_confined).await?;
    cluster.found(volumes, VOLUME_SIZE).await?;
    let took = begun.elapsed().as_secs_f64();
    println!("{nodes} nodes and {volumes} volumes after {took:.1} s");
    Ok(cluster)
}

/// A client at every portal for every volume.
pub(crate) fn residents(world: &Rc<World>, tasks: &mut JoinSet<()>, random: &mut Random) {
    let mut client = 0;
    for volume in 0..world.volumes.len() {
        for portal in 0..world.portals.len() {
            client += 1;
            let doer = Doer {
                client,
                portal: portal as u16,
            };
            let stay = resident::stay(Rc::clone(world), volume as u32, doer, random.fork());
            tasks.spawn_local(stay);
        }
    }
    let watched = Rc::clone(world);
    spawn_local(async move {
        while !watched.is_over.get() {
            let due = watched.ledger.now() + TICK.as_micros() as u64;
            sleep(TICK).await;
            let now = watched.ledger.now();
            if now > due + TICK.as_micros() as u64 {
                watched.gaps.stalled(due, now);
            }
        }
    });
}

/// See the module's header.
pub(crate) async fn run(mut cluster: Cluster, wanted: &Wanted) -> anyhow::Result<Report> {
    let mut random = Random::new(wanted.seed);
    let world = World::new(&cluster, random.next(), wanted.hosts);
    let mut tasks = JoinSet::new();
    residents(&world, &mut tasks, &mut random);
    for volume in 0..wanted.volumes as u32 {
        for number in 0..wanted.hosts {
            let client = 100 + (volume * wanted.hosts + number) as u16;
            let host = Host::new(&world, volume, number, client, random.fork());
            tasks.spawn_local(host.work());
        }
    }
    let means = Means {
        can_cut: cluster.network.can_cut(),
        has_small_file_systems: cluster.has_small_file_systems(),
    };
    let mut classes = means.classes();
    if !wanted.classes.is_empty() {
        classes.retain(|class| wanted.classes.contains(class));
        anyhow::ensure!(!classes.is_empty(), "none of these faults is possible here");
    }
    let began = Instant::now();
    let mut episodes = Vec::new();
    let mut nemesis = Nemesis::new(&mut cluster, &world, random.fork(), wanted.pace, means);
    // Load that stands before the first fault, and clients that are all logged in.
    nemesis.until_whole(0).await?;
    sleep(Duration::from_secs(2)).await;
    'faults: loop {
        random.shuffle(&mut classes);
        for class in &classes {
            if began.elapsed() >= wanted.time {
                break 'faults;
            }
            episodes.extend(nemesis.strike(*class).await?);
        }
    }
    let mut failures = std::mem::take(&mut nemesis.failures);
    end_clients(&world, tasks).await?;
    read_back(&world, &mut random).await?;
    world.ledger.check();
    let took = began.elapsed().as_secs_f64();
    for wrong in cluster.stop_and_check().await? {
        failures.push(format!("store check: {wrong}"));
    }
    let counts = world.ledger.counts();
    Ok(Report {
        seed: wanted.seed,
        seconds: took,
        network: if means.can_cut {
            "network namespaces"
        } else {
            "loopback addresses"
        }
        .into(),
        commands: counts.commands(),
        counts,
        departures: world.departures.get(),
        bounds: wanted.bounds,
        classes: rows(&episodes, wanted.bounds),
        violations_count: world.ledger.violations_count(),
        violations: world.ledger.violations(),
        failures,
        answers: world.answers.borrow().clone(),
        episodes,
    })
}

/// Tells clients that it is over, and waits for them.
pub(crate) async fn end_clients(world: &World, mut tasks: JoinSet<()>) -> anyhow::Result<()> {
    world.is_over.set(true);
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            ended.context("a client")?;
        }
        anyhow::Ok(())
    };
    timeout(CLIENTS_LIMIT, all)
        .await
        .context("clients do not end")?
}

/// Reads every block that was ever written once more, each part through another portal.
pub(crate) async fn read_back(world: &World, random: &mut Random) -> anyhow::Result<()> {
    for volume in 0..world.volumes.len() as u32 {
        let mut paths = Vec::new();
        for portal in 0..world.portals.len() as u16 {
            let doer = Doer {
                client: 9000 + volume as u16,
                portal,
            };
            paths.push(world.connect(volume, doer, READ_BACK_LIMIT).await?);
        }
        let written = world.ledger.written(volume);
        let mut rest = &written[..];
        while let Some(first) = rest.first() {
            let run = rest
                .iter()
                .zip(*first..)
                .take_while(|(block, next)| **block == *next);
            let length = run.count().min(READ_BACK_BLOCKS);
            let path = &paths[random.below(paths.len())];
            timeout(READ_BACK_LIMIT, world.read(path, *first, length as u32))
                .await
                .context("reading back")?
                .with_context(|| format!("reading back at {:.3}", seconds(world.ledger.now())))?;
            rest = &rest[length..];
        }
    }
    Ok(())
}
