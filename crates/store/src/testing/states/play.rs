//! Playing a sequence of operations, with a note of what was promised when.

use std::rc::Rc;

use bytes::Bytes;
use holdfast_runtime::Runtime;
use xxhash_rust::xxh3::Xxh3;

use super::super::contents::Contents;
use super::super::{Change, Event, MemoryDirectory};
use super::Operation;
use super::judge::{is_claimed_what_is_held, opened};
use crate::{
    BLOCK_BYTES, Body, CopyState, OperationId, Record, Seq, SliceKey, Store, StoreBounds,
    StoreError, StoreOptions, View,
};

pub(super) const SLICE: SliceKey = SliceKey {
    volume: 1,
    slice: 0,
};
/// Longer than the journal waits before it seals its last batch.
const IDLE: std::time::Duration = std::time::Duration::from_millis(10);

pub(super) fn options() -> StoreOptions {
    StoreOptions {
        identity: *b"a store to crash",
        journal_bytes: 512 << 10,
        home_bytes: 4 << 20,
        home_preallocated: false,
        slice_blocks: 1024,
        bounds: StoreBounds {
            // A snapshot now and then.
            facts_log_bytes: 0,
            ..StoreBounds::SERVICE
        },
    }
}

/// A record as it was submitted.
#[derive(Clone, Debug)]
pub(super) struct Submitted {
    pub(super) view: View,
    first_block: u32,
    blocks: u32,
    /// What the blocks are filled with: another number for each record, zero for zeroes.
    fill: u8,
}

/// What must hold from an event on.
#[derive(Clone, Debug)]
pub(super) struct Promise {
    pub(super) from_event: usize,
    /// The operation under way.
    pub(super) operation: Option<Operation>,
    /// The stream's records. It ends with the last of them, or with `acknowledged`.
    pub(super) records: Rc<Vec<Submitted>>,
    pub(super) acknowledged: u64,
    /// The highest stable point that was announced.
    pub(super) stable: u64,
}

impl Promise {
    /// What a block is filled with once the first `through` records are effective.
    pub(super) fn fill(&self, through: u64, block: u32) -> u8 {
        let records = self.records.iter().take(through as usize).rev();
        let mut touching = records.filter(|record| {
            (record.first_block..record.first_block + record.blocks).contains(&block)
        });
        touching.next().map_or(0, |record| record.fill)
    }

    /// The number of the last of the first `through` records that touches the block, and whether
    /// any of them put data there.
    pub(super) fn newest(&self, through: u64, block: u32) -> Option<(u64, bool)> {
        let records = self.records.iter().take(through as usize).zip(1..);
        let touching = records.filter(|(record, _)| {
            (record.first_block..record.first_block + record.blocks).contains(&block)
        });
        touching.fold(None, |found, (record, seq)| {
            let had_data = found.is_some_and(|(_, data)| data);
            Some((seq, had_data || record.fill != 0))
        })
    }

    /// The record with this number.
    pub(super) fn body(&self, seq: u64) -> Option<(View, Body)> {
        let record = self
            .records
            .get(usize::try_from(seq).ok()?.checked_sub(1)?)?;
        Some((record.view, record.body()))
    }

    /// Whether a record holds data for a block.
    pub(super) fn has_data_for(&self, block: u32, after: u64) -> bool {
        let records = self.records.iter().skip(after as usize);
        let mut data = records.filter(|record| record.fill != 0);
        data.any(|record| (record.first_block..record.first_block + record.blocks).contains(&block))
    }

    /// A digest of these promises about disks with this digest.
    pub(super) fn digest(&self, disks: u128, with_later: bool) -> u128 {
        let mut hash = Xxh3::new();
        hash.update(&disks.to_le_bytes());
        for number in [self.acknowledged, self.stable, u64::from(with_later)] {
            hash.update(&number.to_le_bytes());
        }
        for record in &*self.records {
            let range = [record.first_block, record.blocks, u32::from(record.fill)];
            for number in range {
                hash.update(&number.to_le_bytes());
            }
            hash.update(&record.view.0.to_le_bytes());
        }
        hash.digest128()
    }
}

impl Submitted {
    fn body(&self) -> Body {
        if self.fill == 0 {
            return Body::Zero {
                first_block: self.first_block,
                blocks: self.blocks,
            };
        }
        Body::Write {
            first_block: self.first_block,
            data: filled(self.fill),
        }
    }
}

/// A block of which the first sector, one in the middle and the last one are filled: a torn block
/// lacks one of them, and there are not so many ways to tear it.
pub(super) fn filled(fill: u8) -> Bytes {
    let mut bytes = vec![0; BLOCK_BYTES];
    for sector in [0, 3, 7] {
        bytes[sector * 512..(sector + 1) * 512].fill(fill);
    }
    Bytes::from(bytes)
}

/// Something that happened on disks, and what was promised meanwhile.
pub(super) struct Life {
    /// The disks at its beginning.
    pub(super) begin: Contents,
    pub(super) events: Vec<Event>,
    pub(super) promises: Vec<Promise>,
}

impl Life {
    /// A digest of all that was done and promised in it; not of the disks that it began with.
    pub(super) fn digest(&self) -> u128 {
        let mut hash = Xxh3::new();
        for event in &self.events {
            match event {
                Event::Begun {
                    ticket,
                    area,
                    offset,
                    change,
                } => {
                    hash.update(area.as_bytes());
                    hash.update(&ticket.to_le_bytes());
                    hash.update(&offset.to_le_bytes());
                    match change {
                        Change::Write(data) => hash.update(data),
                        Change::Discard(len) => hash.update(&len.to_le_bytes()),
                    }
                }
                Event::Settled(tickets) => {
                    for ticket in tickets {
                        hash.update(&ticket.to_be_bytes());
                    }
                }
            }
        }
        for promise in &self.promises {
            hash.update(&promise.from_event.to_le_bytes());
            hash.update(&promise.digest(0, false).to_le_bytes());
        }
        hash.digest128()
    }
}

/// A sequence that was played.
pub(super) struct Played {
    pub(super) life: Life,
    /// What was wrong without any crash.
    pub(super) objections: Vec<String>,
}

/// A store in use.
struct Player {
    directory: MemoryDirectory,
    store: Rc<Store>,
    view: View,
    next_fill: u8,
    promises: Vec<Promise>,
    objections: Vec<String>,
}

/// Where the record of a life begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// Before the store was made.
    Nothing,
    /// When it is in use.
    InUse,
}

/// Plays a sequence on a store that has two blocks at home, and a newer version of one of them in
/// the journal.
pub(super) async fn play(runtime: Runtime, sequence: Vec<Operation>, from: Begin) -> Played {
    let directory = MemoryDirectory::new(runtime.clone());
    if from == Begin::Nothing {
        make_areas(&directory).await;
        directory.record();
    }
    let mut begin = directory.contents();
    let store = opened(&runtime, &directory)
        .await
        .expect("a new store opens");
    store
        .set_copy_state(SLICE, CopyState::InSync)
        .await
        .expect("a new store works");
    let nothing = Promise {
        from_event: 0,
        operation: None,
        records: Rc::default(),
        acknowledged: 0,
        stable: 0,
    };
    let mut player = Player {
        directory,
        store,
        view: View(1),
        next_fill: 1,
        promises: vec![nothing],
        objections: Vec::new(),
    };
    // What a collection finds beside a block that was replaced.
    let beside = player.append(Operation::Write, 3, 1, 100);
    beside.await.expect("a whole disk");
    let before = [
        Operation::Overwrite,
        Operation::Sync,
        Operation::Destage,
        Operation::Overwrite,
    ];
    for operation in before {
        player.act(&runtime, operation).await.expect("a whole disk");
    }
    if from == Begin::InUse {
        // What was free from the beginning goes back once, and tells nothing more.
        player.store.discard().await;
        begin = player.directory.contents();
        player.directory.record();
        let standing = Promise {
            from_event: 0,
            operation: None,
            ..player.now().clone()
        };
        player.promises = vec![standing];
    }
    for operation in sequence {
        player.act(&runtime, operation).await.expect("a whole disk");
        let held = is_claimed_what_is_held(&player.store, player.now());
        let counted = player.store.audit_home().await;
        for what in [held, counted].into_iter().filter_map(Result::err) {
            player
                .objections
                .push(format!("after {operation:?}: {what}"));
        }
    }
    Played {
        life: Life {
            begin,
            events: player.directory.take_events(),
            promises: player.promises,
        },
        objections: player.objections,
    }
}

/// Areas of their full size, with nothing in them.
async fn make_areas(directory: &MemoryDirectory) {
    let made = MemoryDirectory::new(directory.runtime.clone());
    let opening = Store::open(made.runtime.clone(), Rc::new(made.clone()), options());
    opening.await.expect("a new store opens");
    let made = made.machine.borrow();
    let mut machine = directory.machine.borrow_mut();
    for (name, area) in &made.areas {
        machine.areas.entry(name.clone()).or_default().size_bytes = area.size_bytes;
    }
}

impl Player {
    fn now(&self) -> &Promise {
        self.promises
            .last()
            .expect("a promise from the beginning on")
    }

    fn promise(&mut self, operation: Operation, change: impl FnOnce(&mut Promise)) {
        let mut promise = Promise {
            from_event: self.directory.recorded(),
            operation: Some(operation),
            ..self.now().clone()
        };
        change(&mut promise);
        self.promises.push(promise);
    }

    async fn act(&mut self, runtime: &Runtime, operation: Operation) -> Result<(), StoreError> {
        let data = self.next_fill;
        match operation {
            Operation::Write => return self.append(operation, 2, 1, data).await,
            Operation::Overwrite => return self.append(operation, 1, 1, data).await,
            Operation::Unmap => return self.append(operation, 1, 2, 0).await,
            Operation::Zero => return self.append(operation, 2, 1, 0).await,
            Operation::Truncate => return self.truncate().await,
            Operation::Sync
            | Operation::Idle
            | Operation::Destage
            | Operation::Compact
            | Operation::Collect => {}
        }
        self.promise(operation, |_| {});
        match operation {
            Operation::Sync => {
                self.promise(operation, |promise| promise.stable = promise.acknowledged);
                self.store.set_stable(SLICE, Seq(self.now().stable));
            }
            Operation::Idle => runtime.sleep(IDLE).await,
            Operation::Destage => self.store.flush().await?,
            Operation::Compact => self.store.compact().await?,
            Operation::Collect => {
                self.store.collect().await?;
                self.store.discard().await;
            }
            Operation::Write
            | Operation::Overwrite
            | Operation::Unmap
            | Operation::Zero
            | Operation::Truncate => unreachable!("done above"),
        }
        Ok(())
    }

    async fn append(
        &mut self,
        operation: Operation,
        first_block: u32,
        blocks: u32,
        fill: u8,
    ) -> Result<(), StoreError> {
        self.next_fill += 1;
        let submitted = Submitted {
            view: self.view,
            first_block,
            blocks,
            fill,
        };
        let body = submitted.body();
        self.promise(operation, |promise| {
            Rc::make_mut(&mut promise.records).push(submitted);
        });
        let seq = Seq(self.now().records.len() as u64);
        let record = Record {
            slice: SLICE,
            view: self.view,
            seq,
            stable: Seq(self.now().stable),
            operation: OperationId {
                origin: 1,
                number: u64::from(self.next_fill),
            },
            body,
        };
        self.store.append(vec![record]).await?;
        self.promise(operation, |promise| promise.acknowledged = seq.0);
        Ok(())
    }

    async fn truncate(&mut self) -> Result<(), StoreError> {
        let keep = self.now().stable;
        self.view = View(self.view.0 + 1);
        self.promise(Operation::Truncate, |promise| promise.acknowledged = keep);
        self.store.truncate(SLICE, Seq(keep)).await?;
        self.promise(Operation::Truncate, |promise| {
            Rc::make_mut(&mut promise.records).truncate(keep as usize);
        });
        Ok(())
    }
}
