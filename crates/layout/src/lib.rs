//! Permuted, declustered placement of slices on nodes: pure functions, no I/O.
//!
//! What must always hold for a [`Layout`] of n nodes and k copies (k <= n):
//!
//! * the nodes of a slice are distinct; the first is the proposed owner ("primary");
//! * over any n consecutive slices of a volume every node is primary exactly once;
//! * over one cycle of n(n-1) consecutive slices (twice that for n = 6, 10, 14 .. with k = 3, 7
//!   ..) all nodes hold equally many copies and are primary equally often, and of the slices one
//!   is primary of, each other is second equally often: its ownership spreads evenly when it dies;
//! * the same input gives the same output for ever, for one [`ALGORITHM_VERSION`].
//!
//! The directory records the result, so a new version moves nothing that is placed.
//!
//! # How
//!
//! There are n-1 *base blocks* of k differences `(0, b1, .. bk-1)`; row i of a block is the block
//! shifted by i modulo n (PROTOCOLS 7.2, developed base permutations). Shifting balances copies
//! and roles whatever the block. Load after the loss of one node is even when every difference
//! `d != 0` between two members of a block occurs equally often over all blocks, k(k-1) times:
//!
//! * n prime: Bose. With primitive root w the blocks are `w^m * (1, w^g, w^2g, ..)` for m = 0 ..
//!   n-2 and g = (n-1)/k. Multiplication by every unit carries each difference to every other, so
//!   the balance is exact; where k divides n-1 it also uses the fewest sets of nodes (n = 7, k =
//!   3: 14 of 35), so that fewer combinations of k lost nodes lose data.
//! * otherwise: block x is `(0, x, ..)` for x = 1 .. n-1, and a hill climb with a fixed generator
//!   chooses the rest until the counts are equal or its steps are used up (see `search`).
//!
//! A volume starts in a row and block given by its id, and steps through the cycle. As n and n-1
//! are coprime, consecutive volume ids visit every row once: many small volumes balance as well
//! as one large one. (Ids that all share a factor with n or n-1 would not: give them out
//! consecutively or at random.)
//!
//! # Measured
//!
//! Least and most copies, primaries and, over all pairs (lost node, survivor), slices the survivor
//! has in common with the lost node (it reads these to rebuild). k = 3, asserted in the tests:
//!
//! | n | base | cycle: copies | primaries | shared | 100 slices of 1 volume: copies | shared |
//! |---|---|---|---|---|---|---|
//! | 3 | Bose | 6 | 2 | 6 | 100 | 100 |
//! | 4 | search | 9 | 3 | 6 | 74..76 | 49..51 |
//! | 5 | Bose | 12 | 4 | 6 | 60 | 30 |
//! | 6 | search | 30 | 10 | 12 | 49..51 | 17..24 |
//! | 7 | Bose | 18 | 6 | 6 | 42..44 | 14..15 |
//! | 8 | search | 21 | 7 | 6 | 36..39 | 10..12 |
//! | 9 | search | 24 | 8 | 6 | 32..35 | 7..10 |
//! | 10 | search | 54 | 18 | 12 | 28..31 | 4..9 |
//! | 11 | Bose | 30 | 10 | 6 | 25..28 | 4..6 |
//! | 12 | search | 33 | 11 | 6 | 23..26 | 2..6 |
//! | 13 | Bose | 36 | 12 | 6 | 22..24 | 3..4 |
//! | 14 | search | 78 | 26 | 12 | 20..23 | 0..6 |
//! | 15 | search | 42 | 14 | 6 | 19..22 | 2..4 |
//! | 16 | search | 45 | 15 | 6 | 17..20 | 1..4 |
//!
//! The shared counts over a cycle are exactly equal for every n up to 64 with k = 2 .. 5.

#![forbid(unsafe_code)]

mod search;

/// Version of the mapping from (nodes, volume, slice, copies) to nodes. Any change of a result
/// needs a new number.
pub const ALGORITHM_VERSION: u32 = 1;

/// The largest cluster the layout is made for.
pub const NODES_MAX: usize = 64;

/// The nodes of one slice, the proposed owner first: `min(copies, nodes.len())` distinct members
/// of `nodes`. The order of `nodes` matters. To place many slices, keep a [`Layout`].
///
/// Panics if `nodes` has duplicates or more than [`NODES_MAX`] members.
pub fn place(nodes: &[u64], volume: u64, slice: u32, copies: usize) -> Vec<u64> {
    Layout::new(nodes, copies).place(volume, slice)
}

/// The base blocks of one set of nodes and one number of copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    nodes: Vec<u64>,
    copies: usize,
    /// Differences from the primary, modulo the number of nodes; the first of each block is 0.
    blocks: Vec<Vec<u8>>,
}

impl Layout {
    /// Computes the base blocks: microseconds for a prime number of nodes, up to some
    /// milliseconds otherwise.
    ///
    /// Panics if `nodes` has duplicates or more than [`NODES_MAX`] members.
    pub fn new(nodes: &[u64], copies: usize) -> Self {
        assert!(
            nodes.len() <= NODES_MAX,
            "{} nodes exceed {NODES_MAX}",
            nodes.len()
        );
        let mut sorted = nodes.to_vec();
        sorted.sort_unstable();
        assert!(
            sorted.windows(2).all(|pair| pair[0] != pair[1]),
            "a node is listed twice"
        );
        let copies = copies.min(nodes.len());
        Self {
            nodes: nodes.to_vec(),
            copies,
            blocks: base_blocks(nodes.len(), copies),
        }
    }

    /// Copies that each slice gets: the number asked for, or all nodes if there are fewer.
    pub fn copies(&self) -> usize {
        self.copies
    }

    /// Slices after which the placement of a volume repeats.
    pub fn cycle(&self) -> u64 {
        (self.nodes.len() * self.blocks.len()) as u64
    }

    /// The nodes of one slice, the proposed owner first.
    pub fn place(&self, volume: u64, slice: u32) -> Vec<u64> {
        if self.copies == 0 {
            return Vec::new();
        }
        let (nodes, blocks) = (self.nodes.len() as u64, self.blocks.len() as u64);
        // (volume mod nodes, volume mod blocks) repeats after `period` volumes. Where that is half
        // a cycle (two sets of blocks) the next volumes take the rows which the first left out.
        let period = nodes * (nodes - 1).max(1);
        let block = (volume % blocks + volume / period) % blocks;
        let row = (block * nodes + volume % nodes + u64::from(slice)) % self.cycle();
        let shift = row % nodes;
        let block = &self.blocks[(row / nodes) as usize];
        block
            .iter()
            .map(|difference| self.nodes[((shift + u64::from(*difference)) % nodes) as usize])
            .collect()
    }
}

fn base_blocks(nodes: usize, copies: usize) -> Vec<Vec<u8>> {
    if copies == 0 {
        return Vec::new();
    }
    match primitive_root(nodes) {
        Some(root) => bose(nodes, copies, root),
        None if nodes == 1 => vec![vec![0]],
        None => search::balanced_blocks(nodes, copies),
    }
}

/// The smallest primitive root of a prime; `None` for 1 and composite numbers.
fn primitive_root(modulus: usize) -> Option<usize> {
    (1..modulus).find(|root| {
        let mut power = 1;
        let order = (1..modulus).find(|_| {
            power = power * root % modulus;
            power <= 1
        });
        // A power of 0 is not a unit; an order of modulus - 1 exists for primes only.
        power == 1 && order == Some(modulus - 1)
    })
}

fn bose(nodes: usize, copies: usize, root: usize) -> Vec<Vec<u8>> {
    let mut powers = vec![1];
    for exponent in 1..nodes - 1 {
        powers.push(powers[exponent - 1] * root % nodes);
    }
    let step = ((nodes - 1) / copies).max(1);
    // With as many copies as nodes the powers of the root leave one place: zero takes it.
    let starter: Vec<usize> = (0..copies)
        .map(|member| powers.get(member * step).copied().unwrap_or(0))
        .collect();
    powers
        .iter()
        .map(|unit| {
            let block = starter
                .iter()
                .map(|member| (member + nodes - starter[0]) % nodes);
            block
                .map(|difference| (difference * unit % nodes) as u8)
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Copies, primaries and shared slices of a set of placements, by node index.
    struct Balance {
        copies: Vec<u32>,
        primaries: Vec<u32>,
        seconds: Vec<Vec<u32>>,
        shared: Vec<Vec<u32>>,
    }

    impl Balance {
        fn of(nodes: usize, copies: usize, slices: impl Iterator<Item = (u64, u32)>) -> Self {
            let names: Vec<u64> = (0..nodes as u64).collect();
            let layout = Layout::new(&names, copies);
            let mut balance = Self {
                copies: vec![0; nodes],
                primaries: vec![0; nodes],
                seconds: vec![vec![0; nodes]; nodes],
                shared: vec![vec![0; nodes]; nodes],
            };
            for (volume, slice) in slices {
                let placed = layout.place(volume, slice);
                balance.primaries[placed[0] as usize] += 1;
                if let Some(second) = placed.get(1) {
                    balance.seconds[placed[0] as usize][*second as usize] += 1;
                }
                for node in &placed {
                    balance.copies[*node as usize] += 1;
                    for other in placed.iter().filter(|other| *other != node) {
                        balance.shared[*node as usize][*other as usize] += 1;
                    }
                }
            }
            balance
        }

        fn cycle(nodes: usize, copies: usize) -> Self {
            let names: Vec<u64> = (0..nodes as u64).collect();
            let cycle = Layout::new(&names, copies).cycle() as u32;
            Self::of(nodes, copies, (0..cycle).map(|slice| (7, slice)))
        }
    }

    fn range(counts: &[u32]) -> (u32, u32) {
        (*counts.iter().min().unwrap(), *counts.iter().max().unwrap())
    }

    fn pair_range(counts: &[Vec<u32>]) -> (u32, u32) {
        let pairs = counts.iter().enumerate().flat_map(|(lost, row)| {
            row.iter()
                .enumerate()
                .filter(move |(other, _)| *other != lost)
                .map(|(_, count)| *count)
        });
        range(&pairs.collect::<Vec<_>>())
    }

    #[test]
    fn balance_of_three_copies_is_as_documented() {
        // Nodes; in a cycle: copies, primaries, shared; in 100 slices: copies, shared.
        type Row = (usize, u32, u32, u32, (u32, u32), (u32, u32));
        let documented: [Row; 14] = [
            (3, 6, 2, 6, (100, 100), (100, 100)),
            (4, 9, 3, 6, (74, 76), (49, 51)),
            (5, 12, 4, 6, (60, 60), (30, 30)),
            (6, 30, 10, 12, (49, 51), (17, 24)),
            (7, 18, 6, 6, (42, 44), (14, 15)),
            (8, 21, 7, 6, (36, 39), (10, 12)),
            (9, 24, 8, 6, (32, 35), (7, 10)),
            (10, 54, 18, 12, (28, 31), (4, 9)),
            (11, 30, 10, 6, (25, 28), (4, 6)),
            (12, 33, 11, 6, (23, 26), (2, 6)),
            (13, 36, 12, 6, (22, 24), (3, 4)),
            (14, 78, 26, 12, (20, 23), (0, 6)),
            (15, 42, 14, 6, (19, 22), (2, 4)),
            (16, 45, 15, 6, (17, 20), (1, 4)),
        ];
        for (nodes, copies, primaries, shared, volume_copies, volume_shared) in documented {
            let cycle = Balance::cycle(nodes, 3);
            assert_eq!(range(&cycle.copies), (copies, copies), "{nodes} nodes");
            assert_eq!(
                range(&cycle.primaries),
                (primaries, primaries),
                "{nodes} nodes"
            );
            assert_eq!(pair_range(&cycle.shared), (shared, shared), "{nodes} nodes");
            let volume = Balance::of(nodes, 3, (0..100).map(|slice| (7, slice)));
            assert_eq!(range(&volume.copies), volume_copies, "{nodes} nodes");
            assert_eq!(pair_range(&volume.shared), volume_shared, "{nodes} nodes");
        }
    }

    #[test]
    fn a_cycle_is_exactly_balanced_up_to_64_nodes_and_5_copies() {
        for (nodes, copies) in (2..=5).flat_map(|copies| (copies..=64).map(move |n| (n, copies))) {
            let balance = Balance::cycle(nodes, copies);
            let equal = |(least, most)| least == most;
            assert!(
                equal(range(&balance.copies)),
                "{nodes} nodes, {copies} copies: copies"
            );
            assert!(
                equal(range(&balance.primaries)),
                "{nodes} nodes, {copies} copies: primaries"
            );
            assert!(
                equal(pair_range(&balance.seconds)),
                "{nodes} nodes, {copies} copies: seconds"
            );
            assert!(
                equal(pair_range(&balance.shared)),
                "{nodes} nodes, {copies} copies: shared"
            );
        }
    }

    #[test]
    fn consecutive_small_volumes_balance_like_one_large_volume() {
        for nodes in 3..=16_u64 {
            let volumes = Layout::new(&(0..nodes).collect::<Vec<_>>(), 3).cycle();
            let slices = (0..volumes).flat_map(|volume| [(volume, 0), (volume, 1)]);
            let balance = Balance::of(nodes as usize, 3, slices);
            let primaries = (2 * volumes / nodes) as u32;
            assert_eq!(
                range(&balance.primaries),
                (primaries, primaries),
                "{nodes} nodes"
            );
            assert_eq!(
                range(&balance.copies),
                (3 * primaries, 3 * primaries),
                "{nodes} nodes"
            );
            let shared = 6 * primaries / (nodes as u32 - 1);
            assert_eq!(
                pair_range(&balance.shared),
                (shared, shared),
                "{nodes} nodes"
            );
        }
    }

    #[test]
    fn a_version_1_placement_never_changes() {
        let nodes = |count: u64| (1..=count).map(|node| node * 10).collect::<Vec<_>>();
        assert_eq!(ALGORITHM_VERSION, 1);
        assert_eq!(place(&nodes(5), 1, 0, 3), [20, 40, 30]);
        assert_eq!(place(&nodes(5), 1, 1, 3), [30, 50, 40]);
        assert_eq!(place(&nodes(5), 42, 1000, 3), [30, 40, 10]);
        assert_eq!(place(&nodes(6), 1, 0, 3), [20, 40, 30]);
        assert_eq!(place(&nodes(6), 1, 1, 3), [30, 50, 40]);
        assert_eq!(place(&nodes(6), 42, 1000, 3), [50, 40, 10]);
        assert_eq!(place(&nodes(7), 1, 0, 3), [20, 50, 40]);
        assert_eq!(place(&nodes(7), 1, 1, 3), [30, 60, 50]);
        assert_eq!(place(&nodes(7), 42, 1000, 3), [70, 50, 10]);
        assert_eq!(place(&nodes(10), 1, 0, 3), [20, 40, 80]);
        assert_eq!(place(&nodes(10), 1, 1, 3), [30, 50, 90]);
        assert_eq!(place(&nodes(10), 42, 1000, 3), [30, 10, 80]);
        assert_eq!(place(&nodes(16), 1, 0, 2), [20, 40]);
        assert_eq!(place(&nodes(16), 1, 1, 2), [30, 50]);
        assert_eq!(place(&nodes(16), 42, 1000, 2), [30, 40]);
        assert_eq!(place(&nodes(64), 1, 0, 3), [20, 40, 260]);
        assert_eq!(place(&nodes(64), 1, 1, 3), [30, 50, 270]);
        assert_eq!(place(&nodes(64), 42, 1000, 3), [190, 140, 410]);
    }

    #[test]
    fn fewer_nodes_than_copies_give_every_node_one() {
        assert_eq!(place(&[], 1, 1, 3), []);
        assert_eq!(place(&[9], 1, 1, 3), [9]);
        assert_eq!(place(&[9, 4], 0, 0, 3), [9, 4]);
        assert_eq!(place(&[9, 4], 0, 1, 3), [4, 9]);
        assert_eq!(place(&[9, 4], 0, 0, 0), []);
    }

    #[test]
    #[should_panic(expected = "a node is listed twice")]
    fn a_node_listed_twice_is_a_bug_of_the_caller() {
        place(&[1, 2, 1], 0, 0, 2);
    }

    proptest! {
        #[test]
        fn nodes_of_a_slice_are_distinct_members(
            nodes in proptest::collection::btree_set(any::<u64>(), 0..=24),
            volume: u64,
            slice: u32,
            copies in 0_usize..=8,
        ) {
            let nodes: Vec<u64> = nodes.into_iter().collect();
            let mut placed = place(&nodes, volume, slice, copies);
            prop_assert_eq!(placed.len(), copies.min(nodes.len()));
            prop_assert!(placed.iter().all(|node| nodes.contains(node)));
            placed.sort_unstable();
            placed.dedup();
            prop_assert_eq!(placed.len(), copies.min(nodes.len()));
        }

        #[test]
        fn any_n_consecutive_slices_have_each_primary_once(
            nodes in 1_u64..=24,
            volume: u64,
            slice in 0..u32::MAX - 24,
        ) {
            let names: Vec<u64> = (0..nodes).collect();
            let layout = Layout::new(&names, 3);
            let window = slice..slice + nodes as u32;
            let mut primaries: Vec<u64> = window.map(|s| layout.place(volume, s)[0]).collect();
            primaries.sort_unstable();
            prop_assert_eq!(primaries, names);
        }
    }
}
