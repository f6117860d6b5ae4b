//! The durable facts: promises, copy states, stable points, voided ranges.
//!
//! Area `facts` holds two copies of one small structure. An update writes copy 0, then copy 1,
//! and is durable when both are written. So:
//!
//! * a crash damages at most the copy being written; the other holds the facts before or after;
//! * one copy damaged later never takes an acknowledged fact back, because the other has it;
//! * both damaged cannot be the work of a crash: the node has lost its promises and is refused.
//!
//! | copy 0 | copy 1 | decision at open |
//! |---|---|---|
//! | good | good | the higher sequence |
//! | good | bad | copy 0, reported |
//! | bad | good | copy 1, reported |
//! | zero | zero or bad | never created, if the journal agrees |
//! | bad | zero | never created, if the journal agrees |
//! | bad | bad | refused |

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Buffer, Disk};
use tokio::sync::{Notify, oneshot};

use crate::encoding::{FieldReader, FieldWriter, plain_checksum};
use crate::error::StoreError;
use crate::form::{Claim, Form};
use crate::poison::Poison;
use crate::record::{CopyState, Seq, SliceKey, View};

/// Bytes of one copy: room for about 18 000 slices.
pub(crate) const COPY_BYTES: usize = 1 << 20;
/// Size of the area.
pub(crate) const AREA_BYTES: u64 = 2 * COPY_BYTES as u64;
/// Name of the area.
pub(crate) const AREA: &str = "facts";

const MAGIC: u64 = u64::from_le_bytes(*b"HFFACTS\n");
/// Format 1 knew removals of whole volumes only.
pub(crate) const VERSION: u32 = 2;
const FORM: Form = Form {
    area: AREA,
    magic: MAGIC,
    known: 0..=VERSION,
    retired: &[],
};
/// Magic, version, blocks per slice, identity, sequence, body length, checksum.
const HEADER_BYTES: usize = 8 + 4 + 4 + 16 + 8 + 8 + 8;
const CHECKSUM_AT: usize = HEADER_BYTES - 8;

/// What is durably known of one slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct SliceFacts {
    pub(crate) copy: CopyState,
    /// The stable point, at least as it was before any record up to it left the journal.
    pub(crate) stable: Seq,
    /// Every stream record of this copy up to here had reached the home.
    pub(crate) destaged: Seq,
    /// Records above this point may have been lost to damage.
    pub(crate) suspect: Option<Seq>,
}

/// Stream records of `slice` above `keep_through` in batches before `before_lsn` are void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Void {
    pub(crate) slice: SliceKey,
    pub(crate) keep_through: Seq,
    pub(crate) before_lsn: u64,
}

/// What is removed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// All slices of a volume, and what was promised for it.
    Volume(u64),
    /// One slice; its volume stays.
    Slice(SliceKey),
}

impl Scope {
    /// The volume that it is, or is of.
    pub(crate) fn volume(self) -> u64 {
        match self {
            Self::Volume(volume) => volume,
            Self::Slice(key) => key.volume,
        }
    }

    /// The lowest and the highest slice that it may cover.
    pub(crate) fn bounds(self) -> std::ops::RangeInclusive<SliceKey> {
        match self {
            Self::Volume(volume) => slices_of(volume),
            Self::Slice(key) => key..=key,
        }
    }
}

/// All keys that slices of a volume may have.
pub(crate) fn slices_of(volume: u64) -> std::ops::RangeInclusive<SliceKey> {
    let key = |slice| SliceKey { volume, slice };
    key(0)..=key(u32::MAX)
}

/// Everything of `scope` in batches before `before_lsn`, and in the home until `cleared`, is
/// void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Removal {
    pub(crate) scope: Scope,
    pub(crate) before_lsn: u64,
    pub(crate) cleared: bool,
}

/// The facts themselves.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct FactsState {
    pub(crate) promises: BTreeMap<u64, View>,
    pub(crate) slices: BTreeMap<SliceKey, SliceFacts>,
    pub(crate) voids: Vec<Void>,
    pub(crate) removals: Vec<Removal>,
    /// Whole batches were lost once: a slice without facts may have been in them.
    pub(crate) hole: bool,
}

impl FactsState {
    /// Whether the slice is being removed, and was not set up again since.
    pub(crate) fn is_removed(&self, slice: SliceKey) -> bool {
        let scopes = [Scope::Volume(slice.volume), Scope::Slice(slice)];
        let mut removals = self.removals.iter();
        !self.slices.contains_key(&slice) && removals.any(|removal| scopes.contains(&removal.scope))
    }

    /// Forgets what a removal takes with it. Removals of a volume end with [`Self::cleared`].
    pub(crate) fn begin_removal(&mut self, scopes: &[Scope], before_lsn: u64) {
        for scope in scopes {
            let keys: Vec<SliceKey> = self
                .slices
                .range(scope.bounds())
                .map(|(key, _)| *key)
                .collect();
            for key in keys {
                self.slices.remove(&key);
            }
        }
        let gone: std::collections::BTreeSet<Scope> = scopes.iter().copied().collect();
        self.voids.retain(|void| {
            let slice = void.slice;
            !gone.contains(&Scope::Slice(slice)) && !gone.contains(&Scope::Volume(slice.volume))
        });
        self.removals.extend(scopes.iter().map(|scope| Removal {
            scope: *scope,
            before_lsn,
            cleared: false,
        }));
    }

    /// The home holds nothing of what is being removed any more. With a volume its promise goes.
    pub(crate) fn cleared(&mut self) {
        for removal in self.removals.iter_mut().filter(|removal| !removal.cleared) {
            removal.cleared = true;
            match removal.scope {
                Scope::Volume(volume) => _ = self.promises.remove(&volume),
                Scope::Slice(_) => {}
            }
        }
    }

    /// Forgets what only spoke of batches that have left the journal.
    pub(crate) fn forget_before(&mut self, tail_lsn: u64) {
        self.voids.retain(|void| void.before_lsn > tail_lsn);
        self.removals
            .retain(|removal| !removal.cleared || removal.before_lsn > tail_lsn);
    }

    /// Whether that would forget anything.
    pub(crate) fn has_before(&self, tail_lsn: u64) -> bool {
        self.voids.iter().any(|void| void.before_lsn <= tail_lsn)
            || self
                .removals
                .iter()
                .any(|removal| removal.cleared && removal.before_lsn <= tail_lsn)
    }
}

type Change = Box<dyn FnOnce(&mut FactsState)>;
type QueuedChange = (Change, oneshot::Sender<Result<(), StoreError>>);

/// The facts, and the queue of changes on their way to the disk.
pub(crate) struct Facts {
    disk: Rc<dyn Disk>,
    poison: Rc<Poison>,
    identity: [u8; 16],
    slice_blocks: u32,
    durable: RefCell<FactsState>,
    sequence: Cell<u64>,
    queue: RefCell<VecDeque<QueuedChange>>,
    wake: Rc<Notify>,
}

/// What the area held when it was opened.
pub(crate) enum Found {
    /// No copy is usable and one was never written.
    Nothing,
    /// The facts, their sequence, and whether one copy was unreadable.
    Facts {
        state: FactsState,
        sequence: u64,
        copy_lost: bool,
    },
    /// Neither copy is usable.
    Lost,
}

impl Facts {
    /// Reads both copies. A copy with a good checksum and a foreign identity is an error.
    pub(crate) async fn load(
        disk: &Rc<dyn Disk>,
        identity: [u8; 16],
        slice_blocks: u32,
    ) -> Result<Found, StoreError> {
        let mut best: Option<(FactsState, u64)> = None;
        let mut zero = 0;
        let mut bad = 0;
        for copy in 0..2u64 {
            // A read error is a lost copy like any other damage.
            let Ok(bytes) = disk.read(copy * COPY_BYTES as u64, COPY_BYTES).await else {
                bad += 1;
                continue;
            };
            if bytes.iter().all(|byte| *byte == 0) {
                zero += 1;
                continue;
            }
            match decode(&bytes, identity, slice_blocks)? {
                Some((state, sequence)) => {
                    if best.as_ref().is_none_or(|(_, newest)| sequence > *newest) {
                        best = Some((state, sequence));
                    }
                }
                None => bad += 1,
            }
        }
        Ok(match best {
            Some((state, sequence)) => {
                let copy_lost = bad + zero > 0;
                if copy_lost {
                    reach::note(Row::FactsOtherCopy);
                }
                Found::Facts {
                    state,
                    sequence,
                    copy_lost,
                }
            }
            // One copy of the very first write may be torn; the caller knows if it was the first.
            None if zero > 0 => Found::Nothing,
            None => Found::Lost,
        })
    }

    /// Facts on `disk`, as found there or new.
    pub(crate) fn new(
        disk: Rc<dyn Disk>,
        poison: Rc<Poison>,
        identity: [u8; 16],
        slice_blocks: u32,
        state: FactsState,
        sequence: u64,
    ) -> Self {
        let wake = Rc::new(Notify::new());
        poison.listen(wake.clone());
        Self {
            disk,
            poison,
            identity,
            slice_blocks,
            durable: RefCell::new(state),
            sequence: Cell::new(sequence),
            queue: RefCell::default(),
            wake,
        }
    }

    /// Reads the durable facts.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&FactsState) -> T) -> T {
        read(&self.durable.borrow())
    }

    /// Queues a change at the time of the call; it is durable and visible when the future
    /// resolves. Dropping the future does not withdraw the change.
    pub(crate) fn update(
        &self,
        change: impl FnOnce(&mut FactsState) + 'static,
    ) -> impl Future<Output = Result<(), StoreError>> + 'static {
        let (reply, outcome) = oneshot::channel();
        let queued = self.poison.check();
        if queued.is_ok() {
            self.queue.borrow_mut().push_back((Box::new(change), reply));
            self.wake.notify_one();
        }
        async move {
            queued?;
            outcome.await.unwrap_or(Err(StoreError::Closed))
        }
    }

    /// Carries out queued changes, those that arrive together in one write. Never returns.
    pub(crate) async fn run(self: Rc<Self>) {
        loop {
            self.wake.notified().await;
            loop {
                let changes: Vec<_> = self.queue.borrow_mut().drain(..).collect();
                if changes.is_empty() {
                    break;
                }
                self.apply(changes).await;
            }
        }
    }

    async fn apply(&self, changes: Vec<QueuedChange>) {
        let mut state = self.durable.borrow().clone();
        let mut replies = Vec::with_capacity(changes.len());
        for (change, reply) in changes {
            let mut changed = state.clone();
            change(&mut changed);
            let wanted_bytes = HEADER_BYTES + encode_body(&changed).len();
            if wanted_bytes > COPY_BYTES {
                let refusal = StoreError::FactsFull {
                    wanted_bytes,
                    limit_bytes: COPY_BYTES,
                };
                let _ = reply.send(Err(refusal));
                continue;
            }
            state = changed;
            replies.push(reply);
        }
        let outcome = self.write(state).await;
        for reply in replies {
            let _ = reply.send(outcome.clone());
        }
    }

    async fn write(&self, state: FactsState) -> Result<(), StoreError> {
        self.poison.check()?;
        if *self.durable.borrow() == state {
            return Ok(());
        }
        self.restore(state).await
    }

    /// Writes both copies, changed or not, then makes `state` the durable one. Before the task
    /// runs, or on it.
    pub(crate) async fn restore(&self, state: FactsState) -> Result<(), StoreError> {
        let sequence = self.sequence.get() + 1;
        let image = encode(&state, self.identity, self.slice_blocks, sequence);
        for copy in 0..2u64 {
            let written = self
                .disk
                .write(copy * COPY_BYTES as u64, image.clone())
                .await;
            written.map_err(|error| self.poison.set(error))?;
        }
        self.sequence.set(sequence);
        *self.durable.borrow_mut() = state;
        Ok(())
    }
}

fn encode_body(state: &FactsState) -> Vec<u8> {
    let mut writer = FieldWriter::default();
    writer.u32(u32::from(state.hole));
    writer.u32(state.promises.len() as u32);
    for (volume, view) in &state.promises {
        writer.u64(*volume);
        writer.u64(view.0);
    }
    writer.u32(state.slices.len() as u32);
    for (key, facts) in &state.slices {
        writer.slice(*key);
        let (tag, base) = match facts.copy {
            CopyState::Absent => (0, Seq(0)),
            CopyState::InSync => (1, Seq(0)),
            CopyState::Joining { base } => (2, base),
        };
        writer.u32(tag | u32::from(facts.suspect.is_some()) << 8);
        writer.u64(base.0);
        writer.u64(facts.stable.0);
        writer.u64(facts.destaged.0);
        writer.u64(facts.suspect.unwrap_or_default().0);
    }
    writer.u32(state.voids.len() as u32);
    for void in &state.voids {
        writer.slice(void.slice);
        writer.u64(void.keep_through.0);
        writer.u64(void.before_lsn);
    }
    writer.u32(state.removals.len() as u32);
    for removal in &state.removals {
        let (slice, is_slice) = match removal.scope {
            Scope::Volume(_) => (0, false),
            Scope::Slice(key) => (key.slice, true),
        };
        writer.u64(removal.scope.volume());
        writer.u64(removal.before_lsn);
        writer.u32(u32::from(removal.cleared) | u32::from(is_slice) << 8);
        writer.u32(slice);
    }
    writer.bytes
}

fn encode(state: &FactsState, identity: [u8; 16], slice_blocks: u32, sequence: u64) -> Buffer {
    let body = encode_body(state);
    let mut writer = FieldWriter::default();
    writer.u64(MAGIC);
    writer.u32(VERSION);
    writer.u32(slice_blocks);
    writer.raw(&identity);
    writer.u64(sequence);
    writer.u64(body.len() as u64);
    writer.u64(0);
    writer.raw(&body);
    let checksum = plain_checksum(&writer.bytes);
    writer.bytes[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Buffer::padded_from(&writer.bytes)
}

/// `Ok(None)` for damage; an error for an intact copy that must not be used.
pub(crate) fn decode(
    bytes: &[u8],
    identity: [u8; 16],
    slice_blocks: u32,
) -> Result<Option<(FactsState, u64)>, StoreError> {
    let mut header = FieldReader::new(bytes);
    let fields = (|| {
        let magic = header.u64()?;
        let version = header.u32()?;
        let blocks = header.u32()?;
        let owner = header.array::<16>()?;
        let sequence = header.u64()?;
        let length = usize::try_from(header.u64()?).ok()?;
        let checksum = header.u64()?;
        Some((magic, version, blocks, owner, sequence, length, checksum))
    })();
    let Some((magic, version, blocks, owner, sequence, length, checksum)) = fields else {
        return Ok(None);
    };
    let Some(end) = length
        .checked_add(HEADER_BYTES)
        .filter(|end| *end <= bytes.len())
    else {
        return Ok(None);
    };
    let mut covered = bytes[..end].to_vec();
    covered[CHECKSUM_AT..HEADER_BYTES].fill(0);
    let claim = Claim {
        magic,
        version,
        identity: owner,
        intact: plain_checksum(&covered) == checksum,
    };
    if !FORM.admits(identity, claim)? {
        return Ok(None);
    }
    if blocks != slice_blocks {
        return Err(StoreError::Foreign {
            area: AREA,
            what: "blocks per slice",
        });
    }
    Ok(decode_body(&bytes[HEADER_BYTES..end], version).map(|state| (state, sequence)))
}

fn decode_body(bytes: &[u8], version: u32) -> Option<FactsState> {
    let mut reader = FieldReader::new(bytes);
    let mut state = FactsState {
        hole: reader.u32()? != 0,
        ..FactsState::default()
    };
    for _ in 0..reader.u32()? {
        state.promises.insert(reader.u64()?, View(reader.u64()?));
    }
    for _ in 0..reader.u32()? {
        let key = reader.slice()?;
        let tag = reader.u32()?;
        let base = Seq(reader.u64()?);
        let copy = match tag & 0xff {
            0 => CopyState::Absent,
            1 => CopyState::InSync,
            2 => CopyState::Joining { base },
            _ => return None,
        };
        let stable = Seq(reader.u64()?);
        let destaged = Seq(reader.u64()?);
        let suspect = Some(Seq(reader.u64()?)).filter(|_| tag & 0x100 != 0);
        state.slices.insert(
            key,
            SliceFacts {
                copy,
                stable,
                destaged,
                suspect,
            },
        );
    }
    for _ in 0..reader.u32()? {
        let slice = reader.slice()?;
        let keep_through = Seq(reader.u64()?);
        state.voids.push(Void {
            slice,
            keep_through,
            before_lsn: reader.u64()?,
        });
    }
    for _ in 0..reader.u32()? {
        let volume = reader.u64()?;
        let before_lsn = reader.u64()?;
        let flags = reader.u32()?;
        let scope = match version {
            0 | 1 => Scope::Volume(volume),
            _ => {
                let slice = reader.u32()?;
                match flags & 0x100 {
                    0 => Scope::Volume(volume),
                    _ => Scope::Slice(SliceKey { volume, slice }),
                }
            }
        };
        state.removals.push(Removal {
            scope,
            before_lsn,
            cleared: flags & 1 != 0,
        });
    }
    Some(state)
}
