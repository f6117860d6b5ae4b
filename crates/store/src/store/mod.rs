//! The store of one node: what the layers above call.
//!
//! Tested in `tests/`.

pub(crate) mod bad_blocks;
pub(crate) mod destage;
mod discard;
pub(crate) mod mapped;
pub(crate) mod pressure;
pub(crate) mod recovery;
mod removal;
pub(crate) mod space_return;
mod submission;
pub(crate) mod transfer;
pub(crate) mod verify;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use holdfast_runtime::task::TaskGroup;
use holdfast_runtime::work::Counted;
use holdfast_runtime::{Directory, Runtime};
use tokio::sync::{Mutex, Notify};

use crate::bounds::StoreBounds;
use crate::error::StoreError;
use crate::facts::{Change, Facts, Scope};
use crate::home::Home;
use crate::journal::Journal;
use crate::journal::index::SliceIndex;
use crate::journal::read_in;
use crate::journal::unread::UnreadQueue;
use crate::journal::writer;
use crate::poison::Poison;
use crate::record::{
    BLOCK_BYTES, CopiedBlock, CopyState, OperationId, Record, RecoveryReport, Seq, SliceKey,
    TailEntry, Usage, View,
};
use crate::store::bad_blocks::BadBlocks;
use crate::store::pressure::Pressure;
use crate::store::space_return::SpaceReturn;
use crate::store::submission::flattened;

/// How a store is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Names this store on its disks; areas of another store are refused. Must never change.
    pub identity: [u8; 16],
    /// Size of the journal area in bytes, at least 512 KiB; fixed when the store is made.
    pub journal_bytes: u64,
    /// Size of the home area in bytes, at least 4 MiB; may grow to four times of what it was made
    /// with. Of more, or of more than [`HOME_BYTES_MAX`](crate::HOME_BYTES_MAX), no more is used,
    /// which the log says. About an eighth of it is for maps and for collecting space.
    pub home_bytes: u64,
    /// The home's space is taken when it is made or grown, and kept: no write of it meets a full
    /// disk. Else it is taken as it is needed, and free segments are given back.
    pub home_preallocated: bool,
    /// Blocks of 4 KiB in a slice. Must never change.
    pub slice_blocks: u32,
    /// When the store's own work is due.
    pub bounds: StoreBounds,
}

/// What [`Store::install`] came to.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Installed {
    /// Blocks that are lost here and were not replaced: the copies are older than what was lost.
    pub still_lost: Vec<u32>,
}

/// Journal, home and durable facts of one node.
pub struct Store {
    pub(crate) inner: Rc<Inner>,
    _tasks: TaskGroup,
}

/// What the store's tasks share.
pub(crate) struct Inner {
    pub(crate) runtime: Runtime,
    pub(crate) options: StoreOptions,
    pub(crate) poison: Rc<Poison>,
    pub(crate) journal: Journal,
    pub(crate) home: Home,
    pub(crate) facts: Rc<Facts>,
    pub(crate) slices: RefCell<BTreeMap<SliceKey, SliceIndex>>,
    /// Slices of which the journal may hold something to destage.
    pub(crate) dirty: RefCell<BTreeSet<SliceKey>>,
    /// Slices whose stable point rose since it was last journaled.
    pub(crate) unsealed: RefCell<BTreeSet<SliceKey>>,
    /// Pins to take off once the stable points of this moment are durable.
    pub(crate) released: RefCell<Vec<u64>>,
    /// Held by whoever writes the home.
    pub(crate) home_writers: Mutex<()>,
    /// What is asked of the destage task.
    pub(crate) pressure: Pressure,
    /// Space that is on its way back.
    pub(crate) space: SpaceReturn,
    /// Blocks that are lost here.
    pub(crate) bad: BadBlocks,
    /// What of the journal was not read yet.
    pub(crate) unread: UnreadQueue,
}

impl Store {
    /// Opens the store, creating it if the directory holds none, and recovers it. What the journal
    /// holds of data is read while the store serves already: see [`Store::recovered`].
    ///
    /// # Errors
    ///
    /// Refuses foreign, newer, and irrecoverably damaged areas; nothing was changed then.
    /// Damage that leaves something to serve is no error: see [`RecoveryReport`].
    pub async fn open(
        runtime: Runtime,
        directory: Rc<dyn Directory>,
        options: StoreOptions,
    ) -> Result<(Rc<Self>, RecoveryReport), StoreError> {
        let (inner, report) = recovery::open(runtime.clone(), directory, options).await?;
        let mut tasks = TaskGroup::default();
        tasks.add(runtime.spawn("store facts", inner.facts.clone().run()));
        tasks.add(runtime.spawn("store journal", writer::run(inner.clone())));
        tasks.add(runtime.spawn("store destage", destage::run(inner.clone())));
        tasks.add(runtime.spawn("store read-in", read_in::run(inner.clone())));
        tasks.add(runtime.spawn("store discard", discard::run(inner.clone())));
        Ok((
            Rc::new(Self {
                inner,
                _tasks: tasks,
            }),
            report,
        ))
    }

    /// Resolves when all of what the journal held at the start has been read and verified. Until
    /// then reads of it cost a disk read each, nothing is destaged, and whatever has to know which
    /// blocks are lost waits.
    ///
    /// # Errors
    ///
    /// `Poisoned`.
    pub async fn recovered(&self) -> Result<(), StoreError> {
        self.inner.recovered().await
    }

    /// Returns the failed write or sync that stopped the store, once there is one: from then on
    /// every change is answered `Poisoned`, until the store is opened again.
    pub async fn failed(&self) -> StoreError {
        let fallen = Rc::new(Notify::new());
        self.inner.poison.listen(fallen.clone());
        loop {
            if let Err(error) = self.inner.poison.check() {
                return error;
            }
            fallen.notified().await;
        }
    }

    /// Journals records. They take their place in the journal at the time of the call; the
    /// future resolves when they are durable. Calls in flight together share journal writes and
    /// become durable in call order. Dropping the future does not take the records back.
    ///
    /// Sequence numbers of a slice must rise; only [`Store::truncate`] turns them back. A gap is
    /// the caller's affair (the stream of a joining copy begins anywhere). Waits while the
    /// journal has no room.
    ///
    /// # Errors
    ///
    /// `Full`, `OutOfOrder`, `OutOfRange`, `TooLarge`: nothing was changed, no record was
    /// accepted. `Withdrawn`: a truncation overtook a record. `Poisoned`: durable or not.
    pub fn append(
        self: &Rc<Self>,
        records: Vec<Record>,
    ) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let submitted = self.inner.submit_records(records);
        async move { submitted?.outcome().await }
    }

    /// Raises the slice's stable point; lower values are ignored. Not durable by itself.
    pub fn set_stable(&self, slice: SliceKey, seq: Seq) {
        let mut slices = self.inner.slices.borrow_mut();
        let index = slices.entry(slice).or_default();
        if seq > index.stable {
            index.stable = seq;
            drop(slices);
            self.inner.stable_rose(slice);
        }
    }

    /// The highest sequence number known to be journaled on all in-sync copies.
    pub fn stable(&self, slice: SliceKey) -> Seq {
        self.inner
            .slices
            .borrow()
            .get(&slice)
            .map_or(Seq(0), |index| index.stable)
    }

    /// The highest sequence number durably journaled in this copy's stream, or the stable point
    /// if that is higher.
    pub fn last_seq(&self, slice: SliceKey) -> Seq {
        let slices = self.inner.slices.borrow();
        slices
            .get(&slice)
            .map_or(Seq(0), |index| index.durable.max(index.stable))
    }

    /// The newest stable bytes of `blocks` blocks; zeroes where nothing was written.
    ///
    /// # Errors
    ///
    /// `Damaged` when a block's newest stable version is lost or cannot be told.
    pub async fn read(
        &self,
        slice: SliceKey,
        first_block: u32,
        blocks: u32,
    ) -> Result<Bytes, StoreError> {
        self.inner.read(slice, first_block, blocks).await
    }

    /// Whether writing these blocks takes no space: each of them has some.
    pub fn has_space_for(&self, slice: SliceKey, first_block: u32, blocks: u32) -> bool {
        (first_block..first_block.saturating_add(blocks))
            .all(|block| self.inner.home.is_claimed(slice, block))
    }

    /// Whether space is on its way: something was zeroed or removed that still takes some.
    pub fn is_freeing(&self) -> bool {
        self.inner.space.is_under_way()
    }

    /// Somebody needs the space that is on its way.
    pub fn free_now(&self) {
        if !self.inner.zeroes_at_rest().is_empty() {
            self.inner.pressure.press_whole();
        }
    }

    /// Durable records above the stable point, in order.
    pub fn tail(&self, slice: SliceKey) -> Vec<TailEntry> {
        self.inner
            .slices
            .borrow()
            .get(&slice)
            .map(SliceIndex::tail)
            .unwrap_or_default()
    }

    /// A durable record that is still in the journal; `None` if it is not, or not of `view`.
    ///
    /// # Errors
    ///
    /// `Damaged` when the record exists and its data is lost.
    pub async fn read_record(
        &self,
        slice: SliceKey,
        view: View,
        seq: Seq,
    ) -> Result<Option<Record>, StoreError> {
        let is_unread = |inner: &Inner| {
            let slices = inner.slices.borrow();
            slices.get(&slice).is_some_and(|index| index.is_unread(seq))
        };
        if is_unread(&self.inner) {
            self.inner.recovered().await?;
        }
        let slices = self.inner.slices.borrow();
        let Some(index) = slices.get(&slice) else {
            return Ok(None);
        };
        index
            .record(view, seq)
            .map_err(|block| StoreError::Damaged { slice, block })
    }

    /// Durably voids all stream records above `keep_through` that were submitted before this
    /// call; records submitted after it are kept. The cut takes its place at the time of the
    /// call, and dropping the future does not take it back. Records still waiting to be written
    /// are answered `Withdrawn`. Where there is nothing to void nothing is written.
    ///
    /// # Errors
    ///
    /// `BelowStable`: nothing was changed.
    pub fn truncate(
        &self,
        slice: SliceKey,
        keep_through: Seq,
    ) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let begun = self.inner.begin_truncate(slice, keep_through);
        async move {
            match begun? {
                Some(reply) => flattened(reply.await),
                None => Ok(()),
            }
        }
    }

    /// The last stream records of the slice that were seen since start or found in the journal,
    /// oldest first: as many as [`StoreBounds::recent_operations`].
    pub fn recent_operations(&self, slice: SliceKey) -> Vec<(OperationId, View, Seq)> {
        let slices = self.inner.slices.borrow();
        let mut recent = slices
            .get(&slice)
            .map(SliceIndex::recent)
            .unwrap_or_default();
        let kept = self.inner.options.bounds.recent_operations;
        recent.drain(..recent.len().saturating_sub(kept));
        recent
    }

    /// Durably takes in blocks copied from another copy's stable state. A block takes effect
    /// only where it is newer than this copy's newest stable version, and stays below records
    /// with a higher sequence number.
    ///
    /// # Errors
    ///
    /// `Full`, `OutOfRange`: nothing was changed.
    pub async fn install(
        &self,
        slice: SliceKey,
        blocks: Vec<CopiedBlock>,
    ) -> Result<Installed, StoreError> {
        self.inner.recovered().await?;
        let numbers: Vec<u32> = blocks.iter().map(|copied| copied.block).collect();
        let (submitted, mut still_lost) = self.inner.submit_copies(slice, blocks).await?;
        submitted.outcome().await?;
        self.inner.reconsider_bad(slice, &numbers).await;
        still_lost.retain(|block| self.inner.bad.contains(slice, *block));
        Ok(Installed { still_lost })
    }

    /// The newest stable version of every block changed after `after`, from `from_block` on,
    /// ascending, at most `limit`; zeroed blocks included.
    pub async fn changed_since(
        &self,
        slice: SliceKey,
        after: Seq,
        from_block: u32,
        limit: usize,
    ) -> Vec<(u32, View, Seq)> {
        // A store that is poisoned knows less, and is about to be restarted.
        let _ = self.inner.recovered().await;
        self.inner
            .changed_since(slice, after, from_block, limit)
            .await
    }

    /// The newest stable version of each of `blocks`; sequence number zero where none exists.
    ///
    /// # Errors
    ///
    /// `Damaged` when nothing can be told of the slice.
    pub async fn read_versions(
        &self,
        slice: SliceKey,
        blocks: &[u32],
    ) -> Result<Vec<CopiedBlock>, StoreError> {
        self.inner.recovered().await?;
        self.inner.read_versions(slice, blocks).await
    }

    /// The newest view promised for a volume.
    pub fn promised(&self, volume: u64) -> View {
        self.inner.facts.with(|facts| facts.promise(volume))
    }

    /// Durably promises a view; a lower one changes nothing.
    pub async fn promise(&self, volume: u64, view: View) -> Result<(), StoreError> {
        let promise = Change::Promise { volume, view };
        self.inner.facts.update([promise]).await
    }

    /// What this node's copy of the slice is good for.
    pub fn copy_state(&self, slice: SliceKey) -> CopyState {
        self.inner.copy_state(slice)
    }

    /// Durably sets the copy's state. `InSync` also ends the suspicion that damage left behind:
    /// whoever sets it vouches that all blocks were copied again.
    pub async fn set_copy_state(
        &self,
        slice: SliceKey,
        state: CopyState,
    ) -> Result<(), StoreError> {
        self.set_copy_states(vec![(slice, state)]).await
    }

    /// The same for many slices in one change of the facts: all of them or, after a crash before
    /// this returns, perhaps none.
    pub async fn set_copy_states(
        &self,
        states: Vec<(SliceKey, CopyState)>,
    ) -> Result<(), StoreError> {
        if states.is_empty() {
            return self.inner.poison.check();
        }
        let with_stable = states
            .iter()
            .map(|(slice, state)| (*slice, *state, self.stable(*slice)));
        let copies = Change::Copies(with_stable.collect());
        self.inner.facts.update([copies]).await?;
        let mut slices = self.inner.slices.borrow_mut();
        for (slice, state) in states {
            let index = slices.entry(slice).or_default();
            match state {
                CopyState::InSync => index.joined_through = index.reserved.max(index.durable),
                CopyState::Joining { base } => index.home_through = index.home_through.min(base),
                CopyState::Absent => index.home_through = Seq(0),
            }
        }
        Ok(())
    }

    /// The point up to which this copy certainly holds the whole history: the stable point in
    /// sync, the base while joining, zero when absent; less after damage.
    pub fn base(&self, slice: SliceKey) -> Seq {
        let stable = self.stable(slice);
        self.inner.facts.with(|facts| {
            let Some(found) = facts.slice(slice) else {
                return Seq(0);
            };
            let base = match found.copy {
                CopyState::Absent => Seq(0),
                CopyState::InSync => stable,
                CopyState::Joining { base } => base,
            };
            found.suspect.map_or(base, |suspect| suspect.min(base))
        })
    }

    /// Durably forgets all slices of a volume, what was promised for it and all else about it,
    /// and frees their space. The caller has stopped all other use of the volume, and refuses what
    /// still comes for it: without its promise the store no longer knows which views are over.
    /// Numbers of volumes are never reused, so the cluster's state tells a deleted volume from
    /// one that is new.
    pub async fn remove_volume(&self, volume: u64) -> Result<(), StoreError> {
        let removed = self.inner.begin_remove(vec![Scope::Volume(volume)])?;
        flattened(removed.await)
    }

    /// Durably forgets single slices, as [`Store::remove_volume`] does a volume: their blocks,
    /// records and facts. What was promised for their volumes stays. The caller has stopped all
    /// other use of them until this returns; from then on each may be set up again, with any
    /// sequence numbers. Many at once cost little more than one.
    pub async fn remove_slices(&self, slices: Vec<SliceKey>) -> Result<(), StoreError> {
        if slices.is_empty() {
            return self.inner.poison.check();
        }
        let scopes = slices.into_iter().map(Scope::Slice).collect();
        let removed = self.inner.begin_remove(scopes)?;
        flattened(removed.await)
    }

    /// Slices this store knows anything about, ascending.
    pub fn slices(&self) -> Vec<SliceKey> {
        let mut keys: BTreeSet<SliceKey> = {
            let slices = self.inner.slices.borrow();
            slices.keys().counted().copied().collect()
        };
        keys.extend(self.inner.home.slices());
        self.inner
            .facts
            .with(|facts| keys.extend(facts.slices_in(..).map(|(key, _)| key)));
        keys.into_iter().collect()
    }

    /// Slices of one volume this store knows anything about, ascending. Costs what there is of
    /// that volume.
    pub fn slices_of(&self, volume: u64) -> Vec<SliceKey> {
        let range = SliceKey::all_of(volume);
        let slices = self.inner.slices.borrow();
        let mut keys: BTreeSet<SliceKey> = slices.range(range.clone()).map(|(k, _)| *k).collect();
        drop(slices);
        self.inner.facts.with(|facts| {
            keys.extend(facts.slices_in(range).map(|(key, _)| key));
        });
        let at_home = self
            .inner
            .home
            .slices_from(*SliceKey::all_of(volume).start());
        keys.extend(at_home.take_while(|slice| slice.volume == volume));
        keys.into_iter().collect()
    }

    /// The same of all volumes, from one slice on: some `limit` of them, and all up to the last
    /// that is answered. Empty when there are no more.
    pub fn slices_from(&self, first: SliceKey, limit: usize) -> Vec<SliceKey> {
        let slices = self.inner.slices.borrow();
        let known = slices.range(first..).map(|(key, _)| *key);
        let mut keys: BTreeSet<SliceKey> = known.counted().take(limit).collect();
        drop(slices);
        self.inner.facts.with(|facts| {
            let with_facts = facts.slices_in(first..).map(|(key, _)| key);
            keys.extend(with_facts.take(limit));
        });
        keys.extend(self.inner.home.slices_from(first).take(limit));
        // Behind the first so many, one source may have more that another has not told of.
        keys.into_iter().take(limit).collect()
    }

    /// Volumes this store holds anything of, a promise included, ascending. Costs as many
    /// look-ups as there are volumes, however many slices they have.
    pub fn volumes(&self) -> Vec<u64> {
        let mut found = Vec::new();
        let slices = self.inner.slices.borrow();
        self.inner.facts.with(|facts| {
            let mut next = Some(0);
            while let Some(from) = next {
                let first = *SliceKey::all_of(from).start();
                let held = [
                    slices.range(first..).next().map(|(key, _)| key.volume),
                    facts.slices_in(first..).next().map(|(k, _)| k.volume),
                    facts.promised_from(from),
                    self.inner
                        .home
                        .slices_from(first)
                        .next()
                        .map(|key| key.volume),
                ];
                let volume = held.into_iter().flatten().min();
                found.extend(volume);
                next = volume.and_then(|volume| volume.checked_add(1));
            }
        });
        found
    }

    /// Bytes that the blocks of a slice take, those that are still in the journal included.
    pub fn slice_bytes(&self, slice: SliceKey) -> u64 {
        self.inner.home.claimed_blocks(slice) * BLOCK_BYTES as u64
    }

    /// How full the store is.
    pub fn usage(&self) -> Usage {
        let home = self.inner.home.usage();
        let (journal_bytes, journal_used_bytes) = self.inner.journal.usage();
        let bytes = |blocks: u64| blocks * BLOCK_BYTES as u64;
        Usage {
            home_bytes: bytes(home.capacity_blocks),
            home_used_bytes: bytes(home.claimed_blocks),
            home_reclaimable_bytes: bytes(home.reclaimable_blocks),
            home_map_bytes: bytes(home.map_blocks),
            home_free_bytes: bytes(home.free_blocks),
            home_collected_bytes: self.inner.home.collected_bytes(),
            journal_bytes,
            journal_used_bytes,
        }
    }

    /// Whether recovery met records or blocks it could not tell, now or earlier, that are not
    /// healed yet as far as this store knows.
    pub fn damaged(&self) -> bool {
        !self.inner.bad.is_empty()
            || self.inner.home.is_damaged()
            || self
                .inner
                .facts
                .with(|facts| facts.hole() || !facts.suspects().is_empty())
    }

    /// Whether nothing of the slice is read because records of it may have been lost.
    pub fn is_suspect(&self, slice: SliceKey) -> bool {
        self.inner
            .facts
            .with(|facts| facts.suspects().contains(&slice))
    }

    /// All slices of which that is so.
    pub fn suspect_slices(&self) -> Vec<SliceKey> {
        self.inner
            .facts
            .with(|facts| facts.suspects().iter().copied().collect())
    }

    /// Where in the area `home` the bytes of a block lie, for tests that damage them.
    #[cfg(any(test, feature = "testing"))]
    pub async fn place_of(&self, slice: SliceKey, block: u32) -> Option<u64> {
        self.inner.home.byte_of(slice, block).await
    }

    /// Where in the area `home` pages of the block map lie, those in use, for tests that damage
    /// them: deltas, leaves of tables, directories of tables.
    #[cfg(any(test, feature = "testing"))]
    pub fn map_places(&self) -> [Vec<u64>; 3] {
        self.inner.home.map_bytes()
    }

    /// Whether the home's counts are right, for tests.
    #[cfg(any(test, feature = "testing"))]
    pub async fn audit_home(&self) -> Result<(), String> {
        let _writers = self.inner.home_writers.lock().await;
        self.inner.home.audit().await
    }

    /// Merges all that is known of the home into tables, for tests.
    #[cfg(any(test, feature = "testing"))]
    pub async fn compact(&self) -> Result<(), StoreError> {
        let _writers = self.inner.home_writers.lock().await;
        let merged = self.inner.home.compact().await;
        merged.map_err(|error| self.inner.poison.set(error))
    }

    /// Collects the segments that are being filled, if they hold anything, for tests.
    #[cfg(any(test, feature = "testing"))]
    pub async fn collect(&self) -> Result<(), StoreError> {
        let _writers = self.inner.home_writers.lock().await;
        let collected = self.inner.home.collect_open().await;
        collected.map_err(|error| self.inner.poison.set(error))
    }

    /// Whether leaves of the block map are read ahead, and how many facts each of the two
    /// generations of their cache has at most, for measurements.
    #[cfg(any(test, feature = "testing"))]
    pub fn set_leaf_reads(&self, ahead: bool, cached_facts: Option<usize>) {
        self.inner.home.set_leaf_reads(ahead, cached_facts);
    }

    /// Bytes of leaves of the block map in memory, those on their way included, and the bound of
    /// that, for measurements.
    #[cfg(any(test, feature = "testing"))]
    pub fn leaf_memory(&self) -> (usize, usize) {
        self.inner.home.leaf_memory()
    }

    /// Gives all free segments back to the device, for tests.
    #[cfg(any(test, feature = "testing"))]
    pub async fn discard(&self) {
        let _writers = self.inner.home_writers.lock().await;
        while self.inner.home.discard_some().await {}
    }

    /// From now on nearly all segments of the home are said to be in use, as in one that is full;
    /// returns how many. For measurements: such a home is lost.
    #[cfg(any(test, feature = "testing"))]
    pub fn pretend_full(&self, tables: u32) -> u32 {
        self.inner.home.pretend_full(tables)
    }

    /// Which segment would be collected next, for measurements.
    #[cfg(any(test, feature = "testing"))]
    pub fn next_collected(&self) -> Option<u32> {
        self.inner.home.next_collected()
    }

    /// Writes a snapshot of the home's manifest; returns its bytes. For measurements.
    #[cfg(any(test, feature = "testing"))]
    pub async fn turn_manifest(&self) -> Result<u64, StoreError> {
        let _writers = self.inner.home_writers.lock().await;
        let turned = self.inner.home.turn_manifest().await;
        turned.map_err(|error| self.inner.poison.set(error))
    }

    /// Moves everything stable into the home.
    pub async fn flush(&self) -> Result<(), StoreError> {
        destage::flush(&self.inner).await
    }
}
