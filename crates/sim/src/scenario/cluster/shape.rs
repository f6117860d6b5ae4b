//! What a seed decides about its cluster before anything happens.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_gossip::Options as GossipOptions;
use holdfast_node::{BalanceOptions, ScrubOptions, StoreBounds, VolumeBounds};
use holdfast_runtime::NodeId;

use super::vast;
use crate::disk::DiskTiming;
use crate::faults::FaultClass;
use crate::faults::nemesis::NemesisOptions;
use crate::network::NetworkTiming;
use crate::oracle::content::BLOCK_BYTES;
use crate::random::Random;

/// Nodes that have to be left when one is taken out: a majority of them goes on without any one.
const LEFT_MIN: usize = 3;

/// How many seeds have a volume of thousands of slices: each takes some seconds.
const VAST_PPM: u32 = 30_000;

/// What a cluster has to bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    /// Every fault. Honest errors are allowed while it lasts.
    Hostile,
    /// Now and then a lost, late, repeated or overtaken frame: nobody may notice.
    Calm,
}

/// When the rarer work of nodes is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) store: StoreBounds,
    pub(super) volume: VolumeBounds,
    /// Changes of the config state between two snapshots.
    pub(super) snapshot_after: u64,
}

impl Bounds {
    /// Small ones in most seeds, each by itself: what takes millions of blocks elsewhere happens
    /// here with dozens.
    fn draw(random: &Random) -> Self {
        let (mut store, mut volume) = (StoreBounds::SERVICE, VolumeBounds::SERVICE);
        let mut snapshot_after = 1024;
        if random.chance(700_000) {
            let small = || random.chance(600_000);
            if small() {
                store.recent_facts = random.between(12, 40);
            }
            if small() {
                store.table_bytes = 1 << random.between(9, 11);
            }
            if small() {
                store.deltas = random.between(3, 8) as usize;
            }
            store.collects_always = small();
            if small() {
                store.facts_log_bytes = random.between(0, 20) * 4096;
                store.facts_at_once = random.between(2, 12) as usize;
            }
            if small() {
                store.recent_operations = random.between(1, 32) as usize;
            }
            if small() {
                volume.resync_blocks = random.between(1, 4) as u32;
            }
            if small() {
                volume.operations = random.between(4, 32) as usize;
            }
            if small() {
                volume.in_flight_kib = 1 << 10;
            }
            if small() {
                snapshot_after = random.between(12, 40);
            }
        }
        Self {
            store,
            volume,
            snapshot_after,
        }
    }
}

/// The size of everything.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) mood: Mood,
    pub(super) nodes: Vec<NodeId>,
    pub(super) copies: u32,
    pub(super) volumes: Vec<VolumeShape>,
    pub(super) clients: u64,
    /// Hosts that give paths up.
    pub(super) hosts: u64,
    /// Clients that only read, and stay where they are.
    pub(super) readers: u64,
    /// Longest pause of a client between two operations.
    pub(super) think: Duration,
    pub(super) disturbed_for: Duration,
    pub(super) nemesis: NemesisOptions,
    /// A machine that is lost for good, if any is.
    pub(super) doom: Option<Doom>,
    /// The one node whose data at rest may be damaged.
    pub(super) victim: Option<NodeId>,
    /// Its areas beside journal and home whose bytes may be damaged.
    pub(super) damaged_at_rest: Vec<String>,
    /// Whether volumes are made and deleted meanwhile.
    pub(super) deletes: bool,
    /// Whether nodes are drained.
    pub(super) drains: bool,
    /// Whether hosts share one more volume by reservations.
    pub(super) reserves: bool,
    /// Whether some writes are long ones, all over a volume.
    pub(super) long_writes: bool,
    pub(super) journal_bytes: u64,
    pub(super) home_bytes: u64,
    pub(super) home_preallocated: bool,
    pub(super) scrub: ScrubOptions,
    pub(super) gossip: GossipOptions,
    pub(super) balance: BalanceOptions,
    /// Volumes that nobody uses: there to be owned.
    pub(super) bystanders: u64,
    pub(super) bounds: Bounds,
}

#[derive(Clone, Debug)]
pub(super) struct VolumeShape {
    pub(super) size_bytes: u64,
    pub(super) slice_bytes: u64,
    pub(super) regions: Vec<Region>,
    /// The size that an operator gives the volume while it is used, if any does.
    pub(super) growth: Option<Growth>,
}

/// The end of a machine.
#[derive(Clone, Debug)]
pub(super) struct Doom {
    pub(super) node: NodeId,
    /// From the first operation on.
    pub(super) after: Duration,
}

impl Doom {
    /// Damage may keep the victim from ever starting again. A majority of the config group has
    /// to be left beside both, or nobody can evict anyone.
    fn draw(random: &Random, mood: Mood, nodes: &[NodeId], victim: Option<NodeId>) -> Option<Self> {
        let node = random.pick(nodes).copied()?;
        let spared = victim.is_none_or(|victim| victim == node);
        let possible = mood == Mood::Hostile && nodes.len() >= if spared { 4 } else { 5 };
        (random.chance(300_000) && possible).then(|| Self {
            node,
            after: random.duration(Duration::from_secs(1), Duration::from_secs(25)),
        })
    }
}

/// How a volume grows.
#[derive(Clone, Debug)]
pub(super) struct Growth {
    pub(super) size_bytes: u64,
    /// Where clients meet in the new range, too.
    pub(super) regions: Vec<Region>,
    /// From the first operation on.
    pub(super) after: Duration,
}

/// A part of a volume where clients meet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    /// First unit, counted from the volume's begin.
    pub(super) first: u64,
    /// Bytes of a unit: of what is read and written as a whole, and checked as one register.
    pub(super) unit_bytes: u64,
}

/// How many runs have long writes: longer than a sixteenth of the ring of a small journal.
const LONG_WRITES_PPM: u32 = 300_000;

/// Units of a region.
pub(super) const REGION_UNITS: u64 = 16;

const MIB: u64 = 1 << 20;
const SECTOR_BYTES: u64 = 512;

/// The world of a seed: how fast network and disks are.
pub(super) fn draw_world(random: &Random) -> (NetworkTiming, DiskTiming) {
    let mut network = NetworkTiming::default();
    let mut disk = DiskTiming::default();
    network.refused_after_lost = random.chance(500_000);
    match random.below(4) {
        0 => network.latency = (Duration::from_micros(200), Duration::from_millis(2)),
        1 => network.latency = (Duration::from_micros(5), Duration::from_micros(15)),
        _ => {}
    }
    if random.chance(250_000) {
        // A spinning disk: everything takes long enough to be interrupted.
        disk = DiskTiming {
            read_ns: 5_000_000,
            write_ns: 4_000_000,
            sync_ns: 8_000_000,
            ..disk
        };
    }
    (network, disk)
}

impl Shape {
    pub(super) fn draw(random: &Random) -> Self {
        let mood = if random.chance(120_000) {
            Mood::Calm
        } else {
            Mood::Hostile
        };
        let count = [5, 5, 5, 5, 3, 4, 4, 6][random.below(8) as usize];
        let nodes: Vec<NodeId> = (1..=count).map(NodeId).collect();
        let victim = random
            .pick(&nodes)
            .copied()
            .filter(|_| random.chance(300_000) && mood == Mood::Hostile);
        Self {
            mood,
            copies: if random.chance(850_000) { 3 } else { 2 },
            volumes: (0..random.between(1, 2))
                .map(|number| {
                    // Drawn apart, so that seeds keep what else they decide.
                    let growth = random.fork(&format!("growth {number}"));
                    let volume = VolumeShape::draw(random).with_growth(&growth);
                    match number == 0 && random.fork("vast").chance(VAST_PPM) {
                        true => volume.made_vast(&random.fork("vast size")),
                        false => volume,
                    }
                })
                .collect(),
            clients: random.between(2, 5),
            hosts: match mood {
                Mood::Hostile => random.fork("hosts").between(1, 2),
                Mood::Calm => 0,
            },
            readers: match mood {
                Mood::Hostile => 2,
                Mood::Calm => 0,
            },
            bounds: Bounds::draw(&random.fork("bounds")),
            think: Duration::from_millis([5, 30, 100][random.below(3) as usize]),
            disturbed_for: random.duration(Duration::from_secs(15), Duration::from_secs(60)),
            nemesis: draw_nemesis(random, mood, nodes.len(), victim.is_some()),
            doom: Doom::draw(&random.fork("doom"), mood, &nodes, victim),
            victim,
            damaged_at_rest: ["facts", "config"]
                .into_iter()
                .filter(|area| random.fork(area).chance(500_000))
                .map(str::to_owned)
                .collect(),
            deletes: random.fork("deletes").chance(300_000) && victim.is_none(),
            drains: random.fork("drains").chance(350_000)
                && mood == Mood::Hostile
                && nodes.len() >= 4,
            reserves: random.fork("reserves").chance(400_000)
                && mood == Mood::Hostile
                && victim.is_none(),
            long_writes: random.fork("long writes").chance(LONG_WRITES_PPM)
                && mood == Mood::Hostile
                && !random.fork("vast").chance(VAST_PPM),
            journal_bytes: {
                let usual = [2, 4, 8][random.below(3) as usize] * MIB;
                match random.fork("long writes").chance(LONG_WRITES_PPM) {
                    true if !random.fork("refused").chance(100_000) => 32 * MIB,
                    // The longest records are refused here: a copy must not go on without them.
                    true | false => usual,
                }
            },
            // Owners refuse writes while a copy has less than 64 MiB free.
            home_bytes: 160 * MIB,
            home_preallocated: random.fork("home").chance(250_000),
            scrub: draw_scrub(&random.fork("scrub")),
            gossip: draw_gossip(random, mood),
            balance: draw_balance(&random.fork("balance")),
            bystanders: draw_bystanders(&random.fork("bystanders"), victim),
            nodes,
        }
    }
}

impl Shape {
    /// Whether a volume has thousands of slices.
    pub(super) fn is_vast(&self) -> bool {
        let slices = |volume: &VolumeShape| volume.size_bytes / volume.slice_bytes;
        self.volumes.iter().any(|volume| slices(volume) >= 1_000)
    }

    /// Whether a node can be taken out: damage may keep the victim from ever starting again, and a
    /// majority of the config group has to be left in any case.
    pub(super) fn may_remove(&self) -> bool {
        let lost = usize::from(self.doom.is_some()) + usize::from(self.victim.is_some());
        self.nodes.len() - lost > LEFT_MIN
    }

    /// Without any fault, and nothing smaller than in service but the disks.
    pub(super) fn calm(random: &Random) -> Self {
        let whole = Region {
            first: 0,
            unit_bytes: 4096,
        };
        Self {
            mood: Mood::Calm,
            nodes: (1..=3).map(NodeId).collect(),
            copies: 3,
            volumes: vec![VolumeShape {
                size_bytes: 1 << 30,
                slice_bytes: 1 << 30,
                regions: vec![whole],
                growth: None,
            }],
            doom: None,
            victim: None,
            drains: false,
            long_writes: false,
            journal_bytes: 64 * MIB,
            home_bytes: 512 * MIB,
            home_preallocated: true,
            scrub: ScrubOptions::default(),
            gossip: GossipOptions::default(),
            balance: BalanceOptions::default(),
            bystanders: 0,
            bounds: Bounds {
                store: StoreBounds::SERVICE,
                volume: VolumeBounds::SERVICE,
                snapshot_after: 1024,
            },
            ..Self::draw(random)
        }
    }

    /// Without any fault of its own: what happens to links is the scenario's.
    pub(super) fn draw_for_cuts(random: &Random) -> Self {
        let drawn = Self::draw(random);
        let still = |volume: VolumeShape| VolumeShape {
            growth: None,
            ..volume
        };
        Self {
            mood: Mood::Hostile,
            nodes: (1..=[5, 5, 3][random.below(3) as usize])
                .map(NodeId)
                .collect(),
            copies: 3,
            volumes: drawn.volumes.into_iter().map(still).collect(),
            clients: 2,
            doom: None,
            victim: None,
            drains: false,
            long_writes: false,
            gossip: GossipOptions::default(),
            ..drawn
        }
    }
}

fn draw_nemesis(random: &Random, mood: Mood, nodes: usize, damage: bool) -> NemesisOptions {
    // Mostly within what the redundancy bears; sometimes anything goes, for safety alone.
    let disturbed_max = match random.below(4) {
        0 => nodes,
        1 => 1,
        _ => 2,
    };
    let mut nemesis = NemesisOptions::everyday(disturbed_max);
    let tempo = [1, 2, 4][random.below(3) as usize];
    nemesis.pause.1 /= tempo;
    nemesis.length.1 /= tempo;
    if damage {
        nemesis.weights.insert(FaultClass::Corruption, 2);
        nemesis.weights.insert(FaultClass::UnreadablePage, 1);
        nemesis.weights.insert(FaultClass::MisplacedWrite, 1);
        nemesis.weights.insert(FaultClass::StaleRead, 1);
        nemesis.weights.insert(FaultClass::LyingSync, 1);
    }
    match mood {
        Mood::Hostile => {
            // Each seed leaves some faults out, so that the others meet one another.
            nemesis.weights.retain(|_, _| !random.chance(250_000));
            let compounds = random.fork("compounds");
            nemesis.compounds.retain(|_, _| !compounds.chance(400_000));
        }
        Mood::Calm => {
            let weather = [
                FaultClass::Delay,
                FaultClass::Loss,
                FaultClass::Duplication,
                FaultClass::Reordering,
            ];
            nemesis.compounds.clear();
            nemesis.weights = weather
                .into_iter()
                .map(|class| (class, 1))
                .collect::<BTreeMap<_, _>>();
            nemesis.mild = true;
        }
    }
    nemesis
}

/// From all the time to almost never, as fast as disks allow or with pauses in between.
fn draw_scrub(random: &Random) -> ScrubOptions {
    ScrubOptions {
        interval: Duration::from_secs([1, 20, 3600][random.below(3) as usize]),
        bytes_per_second: [1 << 30, 8 << 20][random.below(2) as usize],
    }
}

/// As it ships, which moves next to nothing in so short a time, or in a hurry.
fn draw_balance(random: &Random) -> BalanceOptions {
    if random.chance(400_000) {
        return BalanceOptions::default();
    }
    BalanceOptions {
        look_every: random.duration(Duration::from_millis(300), Duration::from_secs(2)),
        looks: random.between(1, 3) as u32,
        settled_for: random.duration(Duration::ZERO, Duration::from_secs(3)),
        again_after: Duration::from_secs(20),
    }
}

/// Damage may put any volume out of service, and only those that clients use are watched for it.
fn draw_bystanders(random: &Random, victim: Option<NodeId>) -> u64 {
    match random.chance(150_000) && victim.is_none() {
        true => random.between(8, 20),
        false => 0,
    }
}

fn draw_gossip(random: &Random, mood: Mood) -> GossipOptions {
    let usual = GossipOptions::default();
    if mood == Mood::Calm || random.chance(500_000) {
        return usual;
    }
    // Hasty suspicion: takeovers of owners that are alive and still hold their leases.
    GossipOptions {
        probe_period: Duration::from_millis(150),
        probe_timeout: Duration::from_millis(60),
        suspicion: Duration::from_millis(250),
        ..usual
    }
}

impl VolumeShape {
    /// The blocks that are checked sector by sector.
    pub(super) fn in_sectors(&self, block: u64) -> bool {
        let sectors = BLOCK_BYTES as u64 / SECTOR_BYTES;
        self.regions.iter().any(|region| {
            let first = region.first / sectors;
            region.unit_bytes == SECTOR_BYTES
                && (first..first + REGION_UNITS / sectors).contains(&block)
        })
    }

    fn draw(random: &Random) -> Self {
        let slice_bytes = MIB;
        let slices = random.between(1, 3);
        let size_bytes = slices * slice_bytes;
        let block = BLOCK_BYTES as u64;
        let mut regions: Vec<Region> = (0..random.between(1, 3))
            .map(|_| {
                let first = random.below(size_bytes / block - REGION_UNITS + 1);
                Region {
                    first,
                    unit_bytes: block,
                }
            })
            .collect();
        if slices > 1 {
            // One across a border between slices.
            let first = slice_bytes / block - REGION_UNITS / 2;
            regions.push(Region {
                first,
                unit_bytes: block,
            });
        }
        if slices > 2 {
            // The first slice is there from the beginning; these two come with their first write.
            let first = 2 * slice_bytes / block - REGION_UNITS / 2;
            regions.push(Region {
                first,
                unit_bytes: block,
            });
        }
        if random.chance(400_000) {
            // Parts of blocks, where no region of blocks is.
            let free = (0..size_bytes / block - 1).find(|free| {
                regions
                    .iter()
                    .all(|region| *free + 2 <= region.first || *free >= region.first + REGION_UNITS)
            });
            let sectors = block / SECTOR_BYTES;
            regions.extend(free.map(|free| Region {
                first: free * sectors,
                unit_bytes: SECTOR_BYTES,
            }));
        }
        Self {
            size_bytes,
            slice_bytes,
            regions,
            growth: None,
        }
    }

    /// The same volume with thousands of slices, clients all over it, and no growth.
    fn made_vast(self, random: &Random) -> Self {
        let block = BLOCK_BYTES as u64;
        let size_bytes = vast::draw_bytes(random);
        let mut regions = self.regions;
        regions.extend((0..4).map(|_| Region {
            // Beyond what is checked in sectors.
            first: random.between(self.size_bytes / block, size_bytes / block - REGION_UNITS),
            unit_bytes: block,
        }));
        Self {
            size_bytes,
            regions,
            growth: None,
            ..self
        }
    }

    /// The same volume, perhaps made larger later on.
    fn with_growth(self, random: &Random) -> Self {
        let block = BLOCK_BYTES as u64;
        let growth = random.chance(500_000).then(|| {
            // Not always whole slices: the last one may have an end of its own.
            let size_bytes = self.size_bytes + random.between(1, 4) * self.slice_bytes / 2;
            let blocks = (size_bytes - self.size_bytes) / block;
            let beyond = Region {
                first: self.size_bytes / block + random.below(blocks - REGION_UNITS + 1),
                unit_bytes: block,
            };
            let at_the_end = Region {
                first: size_bytes / block - REGION_UNITS,
                unit_bytes: block,
            };
            Growth {
                size_bytes,
                regions: vec![beyond, at_the_end],
                after: random.duration(Duration::ZERO, Duration::from_secs(15)),
            }
        });
        Self { growth, ..self }
    }
}
