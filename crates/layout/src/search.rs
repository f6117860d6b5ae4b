//! Base blocks for a number of nodes that is not prime: a hill climb with a fixed generator.
//!
//! Everything here is part of what `ALGORITHM_VERSION` names: the generator, its seed, the order
//! of its draws and the number of steps.

/// Steps before the climb settles for what it has: enough for an exact balance in every case of
/// up to 64 nodes and 5 copies; with more copies a few counts end one off their mean.
const STEPS_MAX: u32 = 400_000;

/// One step in this many may make the balance worse by [`WORSENING_MAX`], to leave a local dip.
const WORSEN_EVERY: u64 = 4096;
const WORSENING_MAX: i64 = 8;

/// `nodes - 1` blocks `(0, x, ..)`, x = 1 .. nodes - 1, of `copies` distinct differences each,
/// whose mutual differences occur about equally often.
pub(crate) fn balanced_blocks(nodes: usize, copies: usize) -> Vec<Vec<u8>> {
    let mut climb = Climb::new(nodes, copies);
    // Where the primary and the second are all there is, or every node has a copy, there is no
    // choice, and the balance is exact.
    if copies > 2 && copies < nodes {
        for _ in 0..STEPS_MAX {
            if climb.cost == 0 {
                break;
            }
            climb.step();
        }
    }
    climb
        .blocks
        .into_iter()
        .map(|block| block.into_iter().map(|d| d as u8).collect())
        .collect()
}

/// Sets of `nodes - 1` blocks to search together. A block of `copies` members, a of them odd, has
/// a * (copies - a) odd differences: an even number if `copies` is odd. All blocks of one set
/// should have nodes * copies * (copies - 1) / 4 of them, which is odd for nodes = 6, 10, 14 ..
/// and copies = 3, 7 ..: there, only a second set can make the balance exact.
fn sets(nodes: usize, copies: usize) -> usize {
    if nodes % 4 == 2 && copies % 4 == 3 {
        2
    } else {
        1
    }
}

struct Climb {
    nodes: usize,
    copies: usize,
    blocks: Vec<Vec<usize>>,
    /// How often each difference occurs between ordered pairs of one block; index 0 unused.
    counts: Vec<i64>,
    /// What each of `counts` should be.
    mean: i64,
    /// Sum of the squared deviations of `counts` from `mean`.
    cost: i64,
    random: SplitMix64,
}

impl Climb {
    fn new(nodes: usize, copies: usize) -> Self {
        let block = |second: usize| {
            let rest = (1..nodes).filter(|difference| *difference != second);
            let members = [0, second].into_iter().chain(rest);
            members.take(copies).collect::<Vec<usize>>()
        };
        let blocks: Vec<Vec<usize>> = (0..sets(nodes, copies))
            .flat_map(|_| (1..nodes).map(block))
            .collect();
        let mut counts = vec![0; nodes];
        for block in &blocks {
            for a in block {
                for b in block.iter().filter(|b| *b != a) {
                    counts[(a + nodes - b) % nodes] += 1;
                }
            }
        }
        let mean = (sets(nodes, copies) * copies * (copies - 1)) as i64;
        let cost = counts[1..].iter().map(|count| (count - mean).pow(2)).sum();
        let random = SplitMix64(((nodes as u64) << 32) | copies as u64);
        Self {
            nodes,
            copies,
            blocks,
            counts,
            mean,
            cost,
            random,
        }
    }

    /// Replaces one member of one block by another, unless that makes the balance worse.
    fn step(&mut self) {
        let block = self.random.below(self.blocks.len());
        let place = 2 + self.random.below(self.copies - 2);
        let candidate = 1 + self.random.below(self.nodes - 1);
        let worsening = if self.random.next().is_multiple_of(WORSEN_EVERY) {
            WORSENING_MAX
        } else {
            0
        };
        if self.blocks[block].contains(&candidate) {
            return;
        }
        let (before, replaced) = (self.cost, self.blocks[block][place]);
        self.replace(block, place, candidate);
        if self.cost > before + worsening {
            self.replace(block, place, replaced);
        }
    }

    fn replace(&mut self, block: usize, place: usize, member: usize) {
        let replaced = std::mem::replace(&mut self.blocks[block][place], member);
        for other in (0..self.copies).filter(|other| *other != place) {
            let other = self.blocks[block][other];
            self.count(replaced, other, -1);
            self.count(member, other, 1);
        }
    }

    fn count(&mut self, a: usize, b: usize, change: i64) {
        for (a, b) in [(a, b), (b, a)] {
            let count = &mut self.counts[(a + self.nodes - b) % self.nodes];
            let before = (*count - self.mean).pow(2);
            *count += change;
            self.cost += (*count - self.mean).pow(2) - before;
        }
    }
}

/// Steele, Lea and Flood's generator: a counter through a mixing function.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}
