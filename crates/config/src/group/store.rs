//! Raft's log, vote and snapshot, in memory and in the disk area `config`.
//!
//! Reads come from memory. What always holds:
//!
//! * memory changes only after the record of the change is durable, and records are written
//!   strictly one after another;
//! * a snapshot is written beside the records that come meanwhile, and takes effect between two of
//!   them, with everything that is in memory then;
//! * an entry leaves the log only when a durable snapshot contains it. A purge that runs ahead
//!   of its snapshot waits for it;
//! * the log is contiguous, from the entry after the last purged one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::rc::Rc;

use bytes::Bytes;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Directory, NodeId, PAGE_BYTES};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, RaftLogReader, StorageIOError};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify};
use tokio::task::yield_now;

use super::area::{AREA, Area, AreaError, Contents, Damage, HalfSizes, record_bytes};
use super::data::SnapshotData;
use super::types::{Entry, LogId, Machine, Snapshot, SnapshotMeta, StorageError, Types, Vote};

/// Most bytes of entries in one message to a follower, beyond the first entry.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes of entries that are encoded before others have the thread.
const ENTRIES_STEP_BYTES: usize = 256 << 10;

/// A handle on the store of one node.
pub(super) struct Store<M: Machine> {
    inner: Rc<Inner<M>>,
}

impl<M: Machine> Clone for Store<M> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

struct Inner<M: Machine> {
    memory: RefCell<Memory<M>>,
    writer: Mutex<Area>,
    /// Held by whoever makes the next half. Who needs both takes this one first.
    replacing: Mutex<()>,
    /// A snapshot was stored, or a write failed.
    settled: Notify,
}

struct Memory<M: Machine> {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Sized<M>>,
    entries_bytes: usize,
    snapshot: Option<StoredSnapshot>,
    failed: Option<AreaError>,
}

/// An entry and its encoded size.
struct Sized<M: Machine> {
    entry: Entry<M>,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct StoredSnapshot {
    meta: SnapshotMeta,
    data: SnapshotData,
}

/// What starts a half: what was known when it was begun, whether there is a snapshot, its meta
/// data, its bytes behind their number, the entries, and what was known when it was complete.
/// Images of the area's format 1 end with the entries.
struct Image<M: Machine> {
    known: Known,
    snapshot: Option<StoredSnapshot>,
    entries: Vec<Entry<M>>,
}

/// All that is known, but for entries and the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
}

impl<M: Machine> Image<M> {
    /// The snapshot shares the bytes.
    fn decode(bytes: &Bytes) -> Option<Self> {
        let (known, rest) = postcard::take_from_bytes(bytes).ok()?;
        let (meta, rest): (Option<SnapshotMeta>, _) = postcard::take_from_bytes(rest).ok()?;
        let (snapshot, rest) = match meta {
            None => (None, rest),
            Some(meta) => {
                let (length, rest): (u64, _) = postcard::take_from_bytes(rest).ok()?;
                let (data, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                let data = SnapshotData::of(bytes.slice_ref(data));
                (Some(StoredSnapshot { meta, data }), rest)
            }
        };
        let (entries, rest) = postcard::take_from_bytes(rest).ok()?;
        let known = match rest {
            [] => known,
            rest => postcard::from_bytes(rest).ok()?,
        };
        Some(Self {
            known,
            snapshot,
            entries,
        })
    }
}

/// A snapshot is due once the log behind the last one is longer than this.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogBounds {
    pub(super) entries_max: u64,
    pub(super) bytes_max: usize,
}

/// One durable step.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
struct Record<M: Machine> {
    /// What was committed by then: costs no write of its own, and lets a restarted node show
    /// most of what it knew before it has heard from a leader.
    committed: Option<LogId>,
    step: Step<M>,
}

#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
enum Step<M: Machine> {
    Vote(Vote),
    Append(Vec<Entry<M>>),
    /// Drops the entries from this index on.
    Truncate(u64),
    /// Drops the entries up to this one; a snapshot contains them.
    Purge(LogId),
}

impl<M: Machine> Store<M> {
    /// Opens the node's store. `may_create` allows an area that holds nothing, and makes it hold
    /// an empty log at once: so one that is blank later on was lost, however short the node's
    /// life was. `Ok(None)` says that the area is blank and may not be.
    pub(super) async fn open(
        directory: Rc<dyn Directory>,
        node: NodeId,
        sizes: HalfSizes,
        may_create: bool,
    ) -> Result<Option<Self>, AreaError> {
        if !may_create && !directory.exists(AREA) {
            return Ok(None);
        }
        let opened = Area::open(directory, node, sizes).await;
        if opened.is_err() {
            reach::note(Row::ConfigRefused);
        }
        let (area, contents) = opened?;
        let blank = contents.is_none();
        let memory = match contents {
            Some(contents) => Memory::recover(contents)?,
            None if may_create => Memory::empty(),
            None => return Ok(None),
        };
        let store = Self {
            inner: Rc::new(Inner {
                memory: RefCell::new(memory),
                writer: Mutex::new(area),
                replacing: Mutex::new(()),
                settled: Notify::new(),
            }),
        };
        if blank && !planted::is_active(Bug::ForgetEmptyLog) {
            store.replace(None, 0).await?;
        }
        Ok(Some(store))
    }

    /// The durable vote.
    pub(super) fn vote(&self) -> Option<Vote> {
        self.inner.memory.borrow().vote
    }

    /// Whether a snapshot is due, once entries up to this one are applied. A large snapshot comes
    /// less often: about as many bytes are written for the log as for snapshots.
    pub(super) fn is_long(&self, applied: u64, bounds: LogBounds) -> bool {
        let memory = self.inner.memory.borrow();
        let covered = memory.snapshot_last().map_or(0, |last| last.index);
        let snapshot_bytes = memory
            .snapshot
            .as_ref()
            .map_or(0, |stored| stored.data.len());
        // Each entry takes a page at least, twice.
        let entries_max = bounds
            .entries_max
            .max((snapshot_bytes / (2 * PAGE_BYTES)) as u64);
        let bytes_max = bounds.bytes_max.max(snapshot_bytes / 2);
        applied >= covered + entries_max || memory.entries_bytes > bytes_max
    }

    /// The index of the last entry of the log; 0 if there is none.
    pub(super) fn log_end(&self) -> u64 {
        let memory = self.inner.memory.borrow();
        memory.last_log_id().map_or(0, |last| last.index)
    }

    /// The durable snapshot.
    pub(super) fn snapshot(&self) -> Option<Snapshot<M>> {
        let memory = self.inner.memory.borrow();
        memory.snapshot.clone().map(|stored| Snapshot::<M> {
            meta: stored.meta,
            snapshot: Box::new(stored.data),
        })
    }

    /// Makes a snapshot durable, unless a newer one is. Records are written meanwhile.
    pub(super) async fn save_snapshot(
        &self,
        meta: SnapshotMeta,
        data: SnapshotData,
    ) -> Result<(), StorageError> {
        let _replacing = self.inner.replacing.lock().await;
        if self.inner.memory.borrow().snapshot_last() >= meta.last_log_id {
            return Ok(());
        }
        let result = self.replace(Some(StoredSnapshot { meta, data }), 0).await;
        self.settle(&result);
        result.map_err(|error| StorageIOError::write_snapshot(None, AnyError::new(&error)).into())
    }

    /// Makes another half from this snapshot and all that is known besides, with room for
    /// `payload_bytes` more. The caller holds `replacing`, or is alone.
    async fn replace(
        &self,
        snapshot: Option<StoredSnapshot>,
        payload_bytes: usize,
    ) -> Result<(), AreaError> {
        let result = self.write_replacement(snapshot, payload_bytes).await;
        if let Err(error) = &result {
            self.inner.writer.lock().await.fail(error);
        }
        result
    }

    async fn write_replacement(
        &self,
        snapshot: Option<StoredSnapshot>,
        payload_bytes: usize,
    ) -> Result<(), AreaError> {
        let known = self.inner.memory.borrow().known();
        let meta = snapshot.as_ref().map(|snapshot| &snapshot.meta);
        let mut head = encode(&(known, meta));
        if let Some(snapshot) = &snapshot {
            put(&mut head, &(snapshot.data.len() as u64));
        }
        let data_bytes = snapshot.as_ref().map_or(0, |stored| stored.data.len());
        let log_bytes = self.inner.memory.borrow().entries_bytes;
        let mut draft = {
            let area = self.inner.writer.lock().await;
            let image_bytes = head.len() + data_bytes + log_bytes;
            area.draft(image_bytes as u64, 2 * record_bytes(payload_bytes))?
        };
        draft.begin().await?;
        draft.image(&head).await?;
        for chunk in snapshot.iter().flat_map(|stored| stored.data.chunks()) {
            draft.image(chunk).await?;
        }

        // From here on nothing changes until it takes effect.
        let mut area = self.inner.writer.lock().await;
        let memory = || self.inner.memory.borrow();
        let (now, covered) = (memory().known(), meta.and_then(|meta| meta.last_log_id));
        assert!(
            now.purged <= covered,
            "only what a snapshot contains is purged"
        );
        let count = encode(&(memory().entries.len() as u64));
        draft.image(&count).await?;
        let mut next = memory().entries.keys().next().copied();
        while let Some(first) = next {
            let (entries, following) = memory().encoded_from(first);
            draft.image(&entries).await?;
            next = following;
            yield_now().await;
        }
        draft.image(&encode(&now)).await?;
        area.commit(draft).await?;
        self.inner.memory.borrow_mut().snapshot = snapshot;
        Ok(())
    }

    /// Makes a step durable, then applies it to memory.
    async fn step(&self, step: Step<M>) -> Result<(), AreaError> {
        let result = self.write_step(step).await;
        self.settle(&result);
        result
    }

    async fn write_step(&self, step: Step<M>) -> Result<(), AreaError> {
        let committed = self.inner.memory.borrow().committed;
        let record = Record { committed, step };
        let payload = encode(&record);
        let mut area = self.inner.writer.lock().await;
        while !area.has_room(payload.len()) {
            drop(area);
            self.turn(payload.len()).await?;
            area = self.inner.writer.lock().await;
        }
        area.append(&payload).await?;
        self.inner.memory.borrow_mut().apply(record.step);
        Ok(())
    }

    /// Makes room for a record. Whoever else makes a half meanwhile has done it.
    async fn turn(&self, payload_bytes: usize) -> Result<(), AreaError> {
        let _replacing = self.inner.replacing.lock().await;
        let has_room = async || self.inner.writer.lock().await.has_room(payload_bytes);
        if has_room().await {
            return Ok(());
        }
        reach::note(Row::ConfigTurned);
        let snapshot = self.inner.memory.borrow().snapshot.clone();
        self.replace(snapshot, payload_bytes).await?;
        if has_room().await {
            return Ok(());
        }
        let half = self.inner.writer.lock().await.half_bytes();
        Err(AreaError::Full {
            wanted: 2 * payload_bytes as u64,
            half,
        })
    }

    fn settle(&self, result: &Result<(), AreaError>) {
        if let Err(error) = result {
            self.inner.memory.borrow_mut().failed = Some(error.clone());
        }
        self.inner.settled.notify_waiters();
    }
}

impl<M: Machine> Memory<M> {
    fn empty() -> Self {
        Self {
            vote: None,
            committed: None,
            purged: None,
            entries: BTreeMap::new(),
            entries_bytes: 0,
            snapshot: None,
            failed: None,
        }
    }

    fn recover(contents: Contents) -> Result<Self, AreaError> {
        let contradiction = AreaError::Damaged {
            offset: 0,
            what: Damage::Contents,
        };
        let image = Image::<M>::decode(&contents.image).ok_or(contradiction.clone())?;
        let Known {
            vote,
            committed,
            purged,
        } = image.known;
        let mut memory = Self {
            vote,
            committed,
            purged,
            snapshot: image.snapshot,
            ..Self::empty()
        };
        let mut steps = vec![Step::Append(image.entries)];
        for payload in &contents.records {
            let record: Record<M> =
                postcard::from_bytes(payload).map_err(|_malformed| contradiction.clone())?;
            memory.committed = memory.committed.max(record.committed);
            steps.push(record.step);
        }
        for step in steps {
            if !memory.accepts(&step) {
                return Err(contradiction);
            }
            memory.apply(step);
        }
        // A node votes for a leader before it takes that leader's entries.
        let voted = memory.vote.unwrap_or_default();
        let led_by = memory.last_log_id().map(|last| *last.committed_leader_id());
        let known = memory.last_log_id().max(memory.snapshot_last());
        if led_by > Some(*voted.leader_id()) || memory.committed > known {
            return Err(contradiction);
        }
        Ok(memory)
    }

    /// Whether the invariants hold after `step`.
    fn accepts(&self, step: &Step<M>) -> bool {
        match step {
            Step::Append(entries) => {
                let next = self.last_log_id().map_or(0, |last| last.index + 1);
                (next..)
                    .zip(entries)
                    .all(|(index, entry)| entry.log_id.index == index)
            }
            Step::Purge(upto) => self.snapshot_last() >= Some(*upto),
            Step::Vote(_) | Step::Truncate(_) => true,
        }
    }

    fn last_log_id(&self) -> Option<LogId> {
        self.entries
            .last_key_value()
            .map(|(_, last)| last.entry.log_id)
            .or(self.purged)
    }

    fn snapshot_last(&self) -> Option<LogId> {
        self.snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.meta.last_log_id)
    }

    fn known(&self) -> Known {
        Known {
            vote: self.vote,
            committed: self.committed,
            purged: self.purged,
        }
    }

    /// Some entries, encoded, beginning with this one, and the index of the one that follows.
    fn encoded_from(&self, first: u64) -> (Vec<u8>, Option<u64>) {
        let mut encoded = Vec::new();
        for (index, sized) in self.entries.range(first..) {
            if encoded.len() >= ENTRIES_STEP_BYTES {
                return (encoded, Some(*index));
            }
            put(&mut encoded, &sized.entry);
        }
        (encoded, None)
    }

    fn apply(&mut self, step: Step<M>) {
        match step {
            Step::Vote(vote) => self.vote = Some(vote),
            Step::Append(entries) => {
                for entry in entries {
                    let bytes = encode(&entry).len();
                    self.entries_bytes += bytes;
                    self.entries
                        .insert(entry.log_id.index, Sized { entry, bytes });
                }
            }
            Step::Truncate(index) => {
                let dropped = self.entries.split_off(&index);
                self.entries_bytes -= total_bytes(&dropped);
            }
            Step::Purge(upto) => {
                let kept = self.entries.split_off(&(upto.index + 1));
                self.entries_bytes = total_bytes(&kept);
                self.entries = kept;
                self.purged = self.purged.max(Some(upto));
            }
        }
    }
}

fn total_bytes<M: Machine>(entries: &BTreeMap<u64, Sized<M>>) -> usize {
    entries.values().map(|sized| sized.bytes).sum()
}

/// Encodes what this module defines.
fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data always encodes")
}

/// Appends it to what is encoded already.
fn put<T: Serialize>(bytes: &mut Vec<u8>, value: &T) {
    let before = std::mem::take(bytes);
    *bytes = postcard::to_extend(value, before).expect("plain data always encodes");
}

impl<M: Machine> RaftLogReader<Types<M>> for Store<M> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<M>>, StorageError> {
        let memory = self.inner.memory.borrow();
        Ok(memory
            .entries
            .range(range)
            .map(|(_, sized)| sized.entry.clone())
            .collect())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry<M>>, StorageError> {
        let memory = self.inner.memory.borrow();
        let mut bytes = 0;
        let entries = memory.entries.range(start..end).take_while(|(_, sized)| {
            let first = bytes == 0;
            bytes += sized.bytes;
            first || bytes <= MESSAGE_BYTES_MAX
        });
        Ok(entries.map(|(_, sized)| sized.entry.clone()).collect())
    }
}

impl<M: Machine> RaftLogStorage<Types<M>> for Store<M> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types<M>>, StorageError> {
        let memory = self.inner.memory.borrow();
        Ok(LogState {
            last_purged_log_id: memory.purged,
            last_log_id: memory.last_log_id(),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let result = self.step(Step::Vote(*vote)).await;
        result.map_err(|error| StorageIOError::write_vote(AnyError::new(&error)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.inner.memory.borrow().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        // It becomes durable with the next record.
        let mut memory = self.inner.memory.borrow_mut();
        memory.committed = memory.committed.max(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.inner.memory.borrow().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types<M>>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry<M>>,
    {
        let result = self.step(Step::Append(entries.into_iter().collect())).await;
        match &result {
            Ok(()) => callback.log_io_completed(Ok(())),
            Err(error) => callback.log_io_completed(Err(std::io::Error::other(error.clone()))),
        }
        result.map_err(|error| StorageIOError::write_logs(AnyError::new(&error)).into())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let result = self.step(Step::Truncate(log_id.index)).await;
        result.map_err(|error| StorageIOError::write_logs(AnyError::new(&error)).into())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        loop {
            let settled = self.inner.settled.notified();
            {
                let memory = self.inner.memory.borrow();
                if let Some(error) = &memory.failed {
                    return Err(StorageIOError::write_logs(AnyError::new(error)).into());
                }
                if memory.accepts(&Step::Purge(log_id)) {
                    break;
                }
            }
            // A follower is told to purge what an arriving snapshot contains before that is
            // installed.
            settled.await;
        }
        let result = self.step(Step::Purge(log_id)).await;
        result.map_err(|error| StorageIOError::write_logs(AnyError::new(&error)).into())
    }
}
