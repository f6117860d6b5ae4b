//! The durable facts: promises, copy states, stable points, voided ranges, removals.
//!
//! They are a log with snapshots. Area `facts` holds two copies of everything, in slots that
//! [chains](space) of [entries](entry) are written into. What must always hold:
//!
//! * a change is durable when both copies of its entry are written; it is visible then, and not
//!   before; changes that are waiting together are one entry, and one write to each copy;
//! * a change costs its own size, whatever there is besides;
//! * a crash at any moment leaves one generation in force, with every acknowledged change;
//! * one copy damaged later never takes an acknowledged fact back, because the other has it;
//! * both copies of a part damaged cannot be the work of a crash: refused, see [`load`].
//!
//! When the log is longer than its snapshot, a new [snapshot](snapshot) is taken while changes go
//! on. The area grows with what there is. What formats 0 to 2 left is an [image].

mod change;
mod entry;
mod image;
mod load;
mod snapshot;
mod space;
mod state;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Directory, Disk, DiskError};
use tokio::sync::{Notify, oneshot};

use self::change::Draft;
pub(crate) use self::change::{Change, StablePoint};
pub(crate) use self::entry::Owner;
pub(crate) use self::load::{Found, Loaded, load};
use self::snapshot::Pass;
pub(crate) use self::space::area_options;
use self::space::{Chain, SLOT_BYTES, SLOTS_MIN, Space};
pub(crate) use self::state::{Edit, FactsState, Removal, Scope, Void};
use crate::bounds::StoreBounds;
use crate::error::StoreError;
use crate::poison::Poison;

/// Name of the area.
pub(crate) const AREA: &str = "facts";
/// The log; formats 0 to 2 were images of everything.
pub(crate) const VERSION: u32 = 3;
/// Slots of a new area.
pub(crate) const SLOTS: u32 = SLOTS_MIN;
/// Bytes of one copy of a slot; the other follows it.
pub(crate) const COPY_BYTES: u64 = SLOT_BYTES / 2;
/// Slots that lie where images of earlier formats are.
const IMAGE_SLOTS: u32 = (2 * image::IMAGE_BYTES as u64 / SLOT_BYTES) as u32;

type QueuedChange = (Change, oneshot::Sender<Result<(), StoreError>>);

/// The facts, and the queue of changes on their way to the disk.
pub(crate) struct Facts {
    poison: Rc<Poison>,
    durable: RefCell<FactsState>,
    /// With whoever writes it at the moment: recovery, and then the task.
    log: RefCell<Option<Writer>>,
    queue: RefCell<VecDeque<QueuedChange>>,
    wake: Rc<Notify>,
}

/// The log in force, for the one who writes it.
struct Writer {
    space: Space,
    chain: Chain,
    /// What the chain began with: its snapshot and commit.
    committed_bytes: u64,
    /// When a snapshot is due, and how much of it at once.
    bounds: StoreBounds,
    /// After a snapshot that found no room: not before the log has this size.
    not_before: u64,
    next_generation: u64,
    /// Numbers that a start leaves out, drawn at random: of a snapshot that a crash cut off,
    /// entries may be left where nothing tells of them. Theirs must not be the number again.
    generations_skipped: u64,
    pass: Option<Pass>,
}

impl Facts {
    /// Facts as they were loaded; `generations_skipped` is any number. `directory` lets the area
    /// grow; without it nothing is written.
    pub(crate) fn new(
        directory: Option<Rc<dyn Directory>>,
        disk: Rc<dyn Disk>,
        poison: Rc<Poison>,
        (identity, slice_blocks): ([u8; 16], u32),
        (bounds, generations_skipped): (StoreBounds, u64),
        state: FactsState,
    ) -> Self {
        let wake = Rc::new(Notify::new());
        poison.listen(wake.clone());
        let space = Space {
            directory,
            disk,
            identity,
            slice_blocks,
            free: Default::default(),
        };
        let writer = Writer {
            space,
            chain: Chain::new(0),
            committed_bytes: 0,
            bounds,
            not_before: 0,
            next_generation: 1,
            generations_skipped,
            pass: None,
        };
        Self {
            poison,
            durable: RefCell::new(state),
            log: RefCell::new(Some(writer)),
            queue: RefCell::default(),
            wake,
        }
    }

    /// Reads the durable facts.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&FactsState) -> T) -> T {
        read(&self.durable.borrow())
    }

    /// Queues changes at the time of the call; they are durable and visible when the future
    /// resolves, all at once. Dropping the future does not withdraw them.
    pub(crate) fn update(
        &self,
        changes: impl IntoIterator<Item = Change>,
    ) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let queued = self.poison.check();
        let mut outcome = None;
        if queued.is_ok() {
            for change in changes {
                let (reply, receiver) = oneshot::channel();
                self.queue.borrow_mut().push_back((change, reply));
                outcome = Some(receiver);
            }
            self.wake.notify_one();
        }
        async move {
            queued?;
            match outcome {
                // The last one: they are written together.
                Some(outcome) => outcome.await.unwrap_or(Err(StoreError::Closed)),
                None => Ok(()),
            }
        }
    }

    /// Goes on where `loaded` ends, with `edits` on top: mends copies, wipes what is over, takes
    /// over an image. Before the task runs.
    pub(crate) async fn settle(&self, loaded: Loaded, edits: &[Edit]) -> Result<(), StoreError> {
        let mut writer = self.log.take().expect("nobody writes the log yet");
        let settled = self.settle_with(&mut writer, loaded, edits).await;
        *self.log.borrow_mut() = Some(writer);
        settled.map_err(|error| self.poison.set(error))
    }

    async fn settle_with(
        &self,
        writer: &mut Writer,
        loaded: Loaded,
        edits: &[Edit],
    ) -> Result<(), DiskError> {
        let images = loaded.image_slots();
        let first = if images.is_empty() { 0 } else { IMAGE_SLOTS };
        let slots = writer.space.slots();
        writer.space.free = (first.min(slots)..slots).collect();
        writer.next_generation = loaded.heads.unused_generation();
        match loaded.found {
            // The first one has number 1.
            Found::Nothing { .. } => {}
            Found::Log(_) | Found::Image(_) | Found::Lost => {
                writer.next_generation += writer.generations_skipped;
            }
        }
        match loaded.found {
            Found::Log(log) => {
                for (slot, within, bytes) in log.mends {
                    writer.space.write(slot, within, bytes).await?;
                }
                for slot in &log.chain.slots {
                    writer.space.free.remove(slot);
                }
                let older = loaded.heads.first_before(log.chain.generation);
                // One copy of a slot may still tell of its last use.
                for slot in older
                    .into_iter()
                    .filter(|one| !log.chain.slots.contains(one))
                {
                    reach::note(Row::FactsWipedLate);
                    writer.space.wipe(slot).await?;
                }
                writer.chain = log.chain;
                writer.committed_bytes = log.committed_bytes;
                let space = &mut writer.space;
                space.append_all(&mut writer.chain, edits).await?;
                self.apply(edits);
            }
            Found::Lost => unreachable!("such a store is refused"),
            Found::Nothing { .. } | Found::Image(_) => {
                self.apply(edits);
                writer.begin_pass();
                while writer.pass.is_some() {
                    self.continue_pass(writer).await?;
                }
            }
        }
        if !images.is_empty() {
            reach::note(Row::FactsConverted);
            for slot in images {
                writer.space.wipe(slot).await?;
            }
            writer.space.free.extend(0..first.min(slots));
            for slot in &writer.chain.slots {
                writer.space.free.remove(slot);
            }
        }
        Ok(())
    }

    fn apply(&self, edits: &[Edit]) {
        let mut durable = self.durable.borrow_mut();
        edits.iter().for_each(|edit| durable.apply(edit));
    }

    /// Carries out queued changes, those that arrive together in one write, and takes snapshots
    /// bit by bit between them. Never returns.
    pub(crate) async fn run(self: Rc<Self>) {
        let Some(mut writer) = self.log.take() else {
            return;
        };
        loop {
            let queued: Vec<QueuedChange> = self.queue.borrow_mut().drain(..).collect();
            if !queued.is_empty() {
                self.carry_out(&mut writer, queued).await;
            } else if writer.pass.is_none() || self.poison.check().is_err() {
                self.wake.notified().await;
                continue;
            }
            if self.poison.check().is_ok()
                && let Err(error) = self.go_on_with_snapshot(&mut writer).await
            {
                self.poison.set(error);
            }
        }
    }

    async fn carry_out(&self, writer: &mut Writer, queued: Vec<QueuedChange>) {
        let mut replies = Vec::with_capacity(queued.len());
        let edits = {
            let durable = self.durable.borrow();
            let mut draft = Draft::new(&durable);
            for (change, reply) in queued {
                draft.add(change);
                replies.push(reply);
            }
            draft.into_edits()
        };
        let outcome = self.write(writer, &edits).await;
        for reply in replies {
            let _ = reply.send(outcome.clone());
        }
    }

    async fn write(&self, writer: &mut Writer, edits: &[Edit]) -> Result<(), StoreError> {
        self.poison.check()?;
        let space = &mut writer.space;
        let written = space.append_all(&mut writer.chain, edits).await;
        written.map_err(|error| self.poison.set(error))?;
        if let Some(pass) = &mut writer.pass
            && !edits.is_empty()
            && !planted::is_active(Bug::ForgetCarriedFacts)
        {
            pass.carry(edits);
        }
        self.apply(edits);
        Ok(())
    }

    async fn go_on_with_snapshot(&self, writer: &mut Writer) -> Result<(), DiskError> {
        if writer.pass.is_none() && writer.is_long(self.with(snapshot_bytes)) {
            writer.begin_pass();
        }
        match self.continue_pass(writer).await {
            Err(DiskError::Full { .. }) if writer.chain.generation > 0 => {
                // The log in force goes on in the slots that it has.
                writer.give_up_pass();
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Takes one step of the snapshot under way, if one is.
    async fn continue_pass(&self, writer: &mut Writer) -> Result<(), DiskError> {
        let Some(pass) = &mut writer.pass else {
            return Ok(());
        };
        let edits = pass.next_edits(&self.durable.borrow());
        let Some(chain) = pass.write(edits, &mut writer.space).await? else {
            return Ok(());
        };
        writer.pass = None;
        writer.committed_bytes = chain.bytes;
        let old = std::mem::replace(&mut writer.chain, chain);
        if let Some(first) = old.slots.first() {
            reach::note(Row::FactsTurned);
            writer.space.wipe(*first).await?;
        }
        writer.space.free.extend(old.slots);
        writer.not_before = 0;
        Ok(())
    }
}

/// What a snapshot would take, as good as exactly.
fn snapshot_bytes(state: &FactsState) -> u64 {
    let [promises, slices, voids, removals] = state.counts();
    (20 * promises + 52 * slices + 32 * voids + 56 * removals) as u64
}

impl Writer {
    /// Whether the log is longer than it has to be before a snapshot of this size pays.
    fn is_long(&self, snapshot_bytes: u64) -> bool {
        let log = self.chain.bytes - self.committed_bytes;
        let pays = log > self.bounds.facts_log_bytes && log > snapshot_bytes;
        pays && log > self.not_before
    }

    fn begin_pass(&mut self) {
        self.pass = Some(Pass::new(self.next_generation, self.bounds.facts_at_once));
        self.next_generation += 1;
    }

    fn give_up_pass(&mut self) {
        if let Some(pass) = self.pass.take() {
            tracing::warn!("no room for a snapshot of the durable facts: trying again later");
            self.space.free.extend(pass.slots());
        }
        self.not_before = 2 * (self.chain.bytes - self.committed_bytes);
    }
}
