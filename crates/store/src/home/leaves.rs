//! Reading leaves of tables, through a cache and ahead of who goes through them in order.
//!
//! Tested with the whole store: `tests/ahead.rs`.

use std::collections::BTreeMap;
use std::rc::Rc;

use futures::FutureExt;
use futures::future::try_join_all;
use holdfast_runtime::PAGE_BYTES;

use super::Home;
use super::ahead::{Ahead, Part, Reading};
#[cfg(any(test, feature = "testing"))]
use super::fact::Fact;
use super::fact::{ExtentKey, Leaf};
use super::map::OpenTable;
use super::run;

impl Home {
    /// The leaf of an extent in a table; `None` if the table is no longer in use.
    pub(super) async fn table_leaf(
        &self,
        start: ExtentKey,
        table: &Rc<OpenTable>,
        key: ExtentKey,
    ) -> Option<Option<Rc<Leaf>>> {
        let Some((number, at)) = table.leaf(key) else {
            return Some(None);
        };
        let run = table.table.run;
        if let Some(leaf) = self.cache.borrow_mut().get(run, key) {
            return Some(Some(leaf));
        }
        let read = self.read_ahead(start, table, number, at).await;
        if let Some(leaf) = self.cache.borrow_mut().get(run, key) {
            return Some(Some(leaf));
        }
        // Something else may be damaged, or what was begun early has failed.
        if read == Read::Ahead
            && let Some(alone) = Part::from(table, number, 0)
        {
            self.read_part(&alone).await;
            if let Some(leaf) = self.cache.borrow_mut().get(run, key) {
                return Some(Some(leaf));
            }
        }
        let current = self.map.borrow().tables.get(&start).cloned();
        if !current.is_some_and(|current| Rc::ptr_eq(&current, table)) {
            return None;
        }
        tracing::warn!(?key, run, "a leaf of the block map is damaged");
        self.damaged.set(true);
        Some(Some(Rc::new(Leaf::lost())))
    }

    /// Brings a leaf into the cache, if it is intact, and more of them for a reader who goes
    /// through them in order.
    async fn read_ahead(
        &self,
        start: ExtentKey,
        table: &Rc<OpenTable>,
        number: usize,
        at: u32,
    ) -> Read {
        let mut reader = self.ahead.borrow_mut().reader(table.table.run, at);
        let (part, read) = match reader.take_coming(number) {
            Some(coming) => {
                let (part, pages) = coming.arrived().await;
                self.keep_leaves(&part, pages);
                (part, Read::Ahead)
            }
            None => {
                let Some(part) = Part::from(table, number, reader.pages) else {
                    return Read::Alone;
                };
                self.read_part(&part).await;
                let alone = part.leaves.len() == 1;
                (part, if alone { Read::Alone } else { Read::Ahead })
            }
        };
        let pages = self.ahead.borrow().more(reader.pages);
        let Some(next) = self.part_behind(start, &part, pages) else {
            return read;
        };
        let reading = Ahead::comes(reader.pages).then(|| {
            reader.pages = pages;
            self.reading(&next)
        });
        self.ahead.borrow_mut().expect(reader, next, reading);
        read
    }

    /// What follows a part of the table that begins at `start`, in it or in the next one.
    fn part_behind(&self, start: ExtentKey, part: &Part, pages: u32) -> Option<Part> {
        let here = Part::from(&part.table, part.leaves.end, pages);
        here.or_else(|| Part::from(self.map.borrow().table_behind(start)?, 0, pages))
    }

    async fn read_part(&self, part: &Part) {
        let (first, count) = part.pages();
        let pages = self.read_run(&part.table.extents_of(first, count)).await;
        self.keep_leaves(part, pages);
    }

    /// A read of a part that goes on by itself. It is tried once: whoever needs a leaf that it
    /// did not bring reads again.
    fn reading(&self, part: &Part) -> Reading {
        let (first, count) = part.pages();
        let extents = part.table.extents_of(first, count);
        let reads = extents.into_iter().map(|(segment, first, count)| {
            let offset = self.byte_at(segment, first);
            self.disk.read(offset, count as usize * PAGE_BYTES)
        });
        let reads = try_join_all(reads);
        async move {
            let read = reads.await.ok()?;
            let mut pages = Vec::with_capacity(read.iter().map(|read| read.len()).sum());
            read.iter().for_each(|read| pages.extend_from_slice(read));
            Some(pages)
        }
        .boxed_local()
    }

    /// Takes the leaves of a part into the cache, if all of its pages are intact.
    fn keep_leaves(&self, part: &Part, pages: Option<Vec<u8>>) {
        let (first, _) = part.pages();
        let run = part.table.table.run;
        let payload = pages.and_then(|pages| run::joined(self.identity, run, first, &pages));
        let Some(payload) = payload else {
            return;
        };
        let mut cache = self.cache.borrow_mut();
        let places = part.table.places(part.leaves.start, part.leaves.len());
        for place in places {
            if let Some(leaf) = run::leaf_in(&place, first, &payload) {
                cache.insert(run, place.key, Rc::new(leaf));
            }
        }
    }

    /// The next looks at the leaves of a table read them from the disk, if the extent's leaf is
    /// the first one in it.
    pub(crate) fn forget_cached(&self, key: ExtentKey) {
        let table = self.map.borrow().table_of(key);
        if let Some((_, table)) = table
            && table.keys().next() == Some(key)
        {
            self.cache.borrow_mut().forget_run(table.table.run);
        }
    }

    /// No leaf that is on its way, or has come and was not asked for, is used any more.
    pub(crate) fn forget_ahead(&self) {
        self.ahead.borrow_mut().forget();
    }

    /// Whether leaves are read ahead, and how many facts a generation of their cache has at most.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn set_leaf_reads(&self, ahead: bool, cached_facts: Option<usize>) {
        if !ahead {
            self.ahead.borrow_mut().limit(0);
        }
        if let Some(facts) = cached_facts {
            self.cache.borrow_mut().limit(facts);
        }
    }

    /// Bytes of leaves in memory, those on their way included, and the bound of that.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn leaf_memory(&self) -> (usize, usize) {
        let (held, bound) = self.cache.borrow().memory();
        let (coming, coming_bound) = self.ahead.borrow().pages();
        let bytes = |pages: u32| pages as usize * PAGE_BYTES;
        (held + bytes(coming), bound + bytes(coming_bound))
    }
}

/// What a read was made for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    /// One leaf.
    Alone,
    /// More than that, or begun before anybody asked.
    Ahead,
}

/// Leaves read from tables, the ones used last. Two generations: what was not used while one
/// filled is gone.
pub(super) struct LeafCache {
    young: BTreeMap<(u64, ExtentKey), Rc<Leaf>>,
    old: BTreeMap<(u64, ExtentKey), Rc<Leaf>>,
    young_cost: usize,
    /// Cost of one generation.
    cost_max: usize,
}

/// Cost of one generation of the cache, in facts of 40 bytes: about 10 MiB each.
const CACHED_FACTS: usize = 256 * 1024;
/// What a leaf costs beside its facts, in facts: its places in the tree and on the heap.
const LEAF_COST: usize = 4;

fn cost(leaf: &Leaf) -> usize {
    leaf.facts().len() + LEAF_COST
}

impl Default for LeafCache {
    fn default() -> Self {
        Self {
            young: BTreeMap::default(),
            old: BTreeMap::default(),
            young_cost: 0,
            cost_max: CACHED_FACTS,
        }
    }
}

impl LeafCache {
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn limit(&mut self, cost_max: usize) {
        self.cost_max = cost_max;
    }

    /// Bytes of what is held, and of what may be.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn memory(&self) -> (usize, usize) {
        let leaves = self.young.values().chain(self.old.values());
        let cost: usize = leaves.map(|leaf| cost(leaf)).sum();
        let bytes = size_of::<Fact>();
        (cost * bytes, 2 * self.cost_max * bytes)
    }

    pub(super) fn get(&mut self, run: u64, key: ExtentKey) -> Option<Rc<Leaf>> {
        if let Some(leaf) = self.young.get(&(run, key)) {
            return Some(leaf.clone());
        }
        let leaf = self.old.remove(&(run, key))?;
        self.insert(run, key, leaf.clone());
        Some(leaf)
    }

    pub(super) fn forget_run(&mut self, run: u64) {
        self.young.retain(|(of, _), _| *of != run);
        self.old.retain(|(of, _), _| *of != run);
        self.young_cost = self.young.values().map(|leaf| cost(leaf)).sum();
    }

    pub(super) fn insert(&mut self, run: u64, key: ExtentKey, leaf: Rc<Leaf>) {
        self.young_cost += cost(&leaf);
        self.young.insert((run, key), leaf);
        if self.young_cost > self.cost_max {
            self.old = std::mem::take(&mut self.young);
            self.young_cost = 0;
        }
    }
}
