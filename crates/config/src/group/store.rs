//! Raft's log, vote and snapshot, in memory and in the disk area `config`.
//!
//! Everything is small, so reads come from memory. What always holds:
//!
//! * memory changes only after the record of the change is durable, and writes are strictly one
//!   after another, whoever asks for them (the Raft core or the snapshot builder);
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
use holdfast_runtime::{Allocation, Directory, DiskOptions, NodeId};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, RaftLogReader, StorageIOError};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify};
use tokio::task::yield_now;

use super::area::{Area, AreaError, Contents, Damage};
use super::types::{Entry, LogId, Machine, Snapshot, SnapshotMeta, StorageError, Types, Vote};

/// Name of the disk area.
pub(super) const AREA: &str = "config";
/// Most bytes of entries in one message to a follower, beyond the first entry.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes of entries that are encoded before others have the thread.
const IMAGE_STEP_BYTES: usize = 256 << 10;

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

#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoredSnapshot {
    meta: SnapshotMeta,
    data: Bytes,
}

/// What starts a half: everything that is known. [`Store::image`] writes it.
#[derive(Deserialize)]
#[serde(bound = "")]
struct Image<M: Machine> {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    snapshot: Option<StoredSnapshot>,
    entries: Vec<Entry<M>>,
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
        directory: &dyn Directory,
        node: NodeId,
        half_bytes: u64,
        may_create: bool,
    ) -> Result<Option<Self>, AreaError> {
        if !may_create && !directory.exists(AREA) {
            return Ok(None);
        }
        let options = DiskOptions {
            size_bytes: 2 * half_bytes,
            durable_writes: !planted::is_active(Bug::VoteUnsynced),
            allocation: Allocation::Written,
        };
        let disk = directory.open(AREA, options).await?;
        let opened = Area::open(disk, node, half_bytes).await;
        if opened.is_err() {
            reach::note(Row::ConfigRefused);
        }
        let (mut area, contents) = opened?;
        let memory = match contents {
            Some(contents) => Memory::recover(contents)?,
            None if may_create => {
                let memory = Memory::empty();
                if !planted::is_active(Bug::ForgetEmptyLog) {
                    let mut image = memory.image_head(None);
                    put(&mut image, &0_u64);
                    area.replace(&image).await?;
                }
                memory
            }
            None => return Ok(None),
        };
        let inner = Inner {
            memory: RefCell::new(memory),
            writer: Mutex::new(area),
            settled: Notify::new(),
        };
        Ok(Some(Self {
            inner: Rc::new(inner),
        }))
    }

    /// The durable vote.
    pub(super) fn vote(&self) -> Option<Vote> {
        self.inner.memory.borrow().vote
    }

    /// Bytes of all entries in the log.
    pub(super) fn log_bytes(&self) -> usize {
        self.inner.memory.borrow().entries_bytes
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

    /// Makes a snapshot durable, unless a newer one is.
    pub(super) async fn save_snapshot(
        &self,
        meta: SnapshotMeta,
        data: Bytes,
    ) -> Result<(), StorageError> {
        let mut area = self.inner.writer.lock().await;
        if self.inner.memory.borrow().snapshot_last() >= meta.last_log_id {
            return Ok(());
        }
        let snapshot = StoredSnapshot { meta, data };
        let image = self.image(Some(&snapshot)).await;
        let result = area.replace(&image).await;
        if result.is_ok() {
            self.inner.memory.borrow_mut().snapshot = Some(snapshot);
        }
        self.settle(&result);
        result.map_err(|error| StorageIOError::write_snapshot(None, AnyError::new(&error)).into())
    }

    /// An [`Image`] with this snapshot, made step by step. The caller holds the writer, so that
    /// entries stay as they are meanwhile.
    async fn image(&self, snapshot: Option<&StoredSnapshot>) -> Vec<u8> {
        let memory = || self.inner.memory.borrow();
        let mut image = memory().image_head(snapshot);
        put(&mut image, &(memory().entries.len() as u64));
        let mut next = memory().entries.keys().next().copied();
        while let Some(first) = next {
            yield_now().await;
            let memory = memory();
            let mut bytes = 0;
            let mut entries = memory.entries.range(first..);
            let some = entries.by_ref().take_while(|(_, sized)| {
                bytes += sized.bytes;
                bytes <= IMAGE_STEP_BYTES || bytes == sized.bytes
            });
            let mut last = first;
            for (index, sized) in some {
                put(&mut image, &sized.entry);
                last = *index;
            }
            next = memory
                .entries
                .range(last + 1..)
                .next()
                .map(|(index, _)| *index);
        }
        image
    }

    /// Makes a step durable, then applies it to memory.
    async fn step(&self, step: Step<M>) -> Result<(), AreaError> {
        let mut area = self.inner.writer.lock().await;
        let committed = self.inner.memory.borrow().committed;
        let record = Record { committed, step };
        let payload = encode(&record);
        let mut result = Ok(());
        if !area.has_room(payload.len()) {
            reach::note(Row::ConfigTurned);
            let snapshot = self.inner.memory.borrow().snapshot.clone();
            let image = self.image(snapshot.as_ref()).await;
            result = area.replace(&image).await;
            if result.is_ok() && !area.has_room(payload.len()) {
                let (wanted, half) = ((image.len() + 2 * payload.len()) as u64, area.half_bytes());
                result = Err(AreaError::Full { wanted, half });
            }
        }
        if result.is_ok() {
            result = area.append(&payload).await;
        }
        if result.is_ok() {
            self.inner.memory.borrow_mut().apply(record.step);
        }
        self.settle(&result);
        result
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
        let image: Image<M> =
            postcard::from_bytes(&contents.image).map_err(|_malformed| contradiction.clone())?;
        let mut memory = Self {
            vote: image.vote,
            committed: image.committed,
            purged: image.purged,
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

    /// All of an [`Image`] but its entries.
    fn image_head(&self, snapshot: Option<&StoredSnapshot>) -> Vec<u8> {
        let covered = snapshot.and_then(|snapshot| snapshot.meta.last_log_id);
        assert!(
            self.purged <= covered,
            "only what a snapshot contains is purged"
        );
        encode(&(self.vote, self.committed, self.purged, snapshot))
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
