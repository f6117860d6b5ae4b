//! What a seed decides about its cluster before anything happens.

use std::time::Duration;

use holdfast_runtime::NodeId;

use crate::faults::FaultClass;
use crate::faults::nemesis::NemesisOptions;
use crate::oracle::content::BLOCK_BYTES;
use crate::random::Random;

/// The size of everything.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) nodes: Vec<NodeId>,
    pub(super) copies: u32,
    pub(super) volumes: Vec<VolumeShape>,
    pub(super) clients: u64,
    /// Longest pause of a client between two operations.
    pub(super) think: Duration,
    pub(super) disturbed_for: Duration,
    pub(super) nemesis: NemesisOptions,
    /// The one node whose data at rest may be damaged.
    pub(super) victim: Option<NodeId>,
    pub(super) journal_bytes: u64,
    pub(super) home_bytes: u64,
}

#[derive(Clone, Debug)]
pub(super) struct VolumeShape {
    pub(super) size_bytes: u64,
    pub(super) slice_bytes: u64,
    /// First blocks of the regions in use, each of [`REGION_BLOCKS`].
    pub(super) regions: Vec<u64>,
}

/// Blocks of a region: clients meet there.
pub(super) const REGION_BLOCKS: u64 = 16;

const MIB: u64 = 1 << 20;

impl Shape {
    pub(super) fn draw(random: &Random) -> Self {
        let count = [5, 5, 5, 5, 3, 4, 4, 6][random.below(8) as usize];
        let nodes: Vec<NodeId> = (1..=count).map(NodeId).collect();
        let copies = if random.chance(850_000) { 3 } else { 2 };
        // Mostly within what the redundancy bears; sometimes anything goes, for safety alone.
        let disturbed_max = match random.below(4) {
            0 => nodes.len(),
            1 => 1,
            _ => 2,
        };
        let mut nemesis = NemesisOptions::everyday(disturbed_max);
        let victim = random
            .pick(&nodes)
            .copied()
            .filter(|_| random.chance(250_000));
        if victim.is_some() {
            nemesis.weights.insert(FaultClass::Corruption, 4);
            nemesis.weights.insert(FaultClass::UnreadablePage, 2);
        }
        Self {
            copies,
            volumes: (0..random.between(1, 2))
                .map(|_| VolumeShape::draw(random))
                .collect(),
            clients: random.between(2, 4),
            think: Duration::from_millis([5, 30, 100][random.below(3) as usize]),
            disturbed_for: random.duration(Duration::from_secs(8), Duration::from_secs(20)),
            nemesis,
            victim,
            journal_bytes: [2, 4, 8][random.below(3) as usize] * MIB,
            // Owners refuse writes while a copy has less than 64 MiB free.
            home_bytes: 160 * MIB,
            nodes,
        }
    }
}

impl VolumeShape {
    fn draw(random: &Random) -> Self {
        let slice_bytes = MIB;
        let slices = random.between(1, 3);
        let size_bytes = slices * slice_bytes;
        let blocks = size_bytes / BLOCK_BYTES as u64;
        let mut regions: Vec<u64> = (0..random.between(1, 3))
            .map(|_| random.below(blocks - REGION_BLOCKS + 1))
            .collect();
        if slices > 1 {
            // One across a border between slices.
            regions.push(slice_bytes / BLOCK_BYTES as u64 - REGION_BLOCKS / 2);
        }
        Self {
            size_bytes,
            slice_bytes,
            regions,
        }
    }
}
