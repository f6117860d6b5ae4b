//! Opening: making a new store, or reading one back.
//!
//! | journal headers | facts | ring | decision |
//! |---|---|---|---|
//! | zero, or never advanced | never written | no batch, home empty | make a new store |
//! | one readable | one readable | any | recover |
//! | none readable | readable | any | refuse: the journal is lost |
//! | readable | none readable | any | refuse: the promises are lost |
//!
//! Recovery reads the map of the home, then replays the journal over them (see
//! [`crate::scan`] for its cases), leaving out what the facts say is void. Most of the journal's
//! data is read when the store is open already (see [`crate::read_in`]). Where a hole swallowed
//! whole batches, a slice whose stream continues behind it without a gap has lost nothing; every
//! other slice is *suspect*: nothing of it is read until its copy has been made anew, from the
//! point on that an earlier destage round had brought home.
//!
//! Tested with the whole store: `tests/damage.rs`, case by case, and `tests/crashes.rs`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Allocation, Directory, Disk, DiskOptions, PAGE_BYTES, Runtime};
use tokio::sync::Mutex;

use crate::error::StoreError;
use crate::facts::{self, Edit, Facts, FactsState, Found, Owner, Removal, Scope, Void};
use crate::home::{self, HOME_BYTES_MIN, Home};
use crate::journal::index::SliceIndex;
use crate::journal::item::{Item, Kind};
use crate::journal::scan::{Scanned, ScannedBatch, scan};
use crate::journal::unread::UnreadQueue;
use crate::journal::writer;
use crate::journal::{
    self, Header, HeaderFound, JOURNAL_BYTES_MIN, Journal, RING_AT, read_header, write_header,
};
use crate::poison::Poison;
use crate::record::{CopyState, RecoveryReport, Seq, SliceKey};
use crate::store::bad_blocks::BadBlocks;
use crate::store::pressure::Pressure;
use crate::store::space_return::SpaceReturn;
use crate::store::{Inner, StoreOptions};

/// Opens or makes the store; its tasks are not running yet.
pub(crate) async fn open(
    runtime: Runtime,
    directory: Rc<dyn Directory>,
    options: StoreOptions,
) -> Result<(Rc<Inner>, RecoveryReport), StoreError> {
    let ring_bytes = check(options)?;
    let journal_bytes = RING_AT + ring_bytes;
    let journal_disk = area(
        &directory,
        journal::AREA,
        journal_bytes,
        Allocation::Written,
    )
    .await?;
    let facts_options = facts::area_options(facts::SLOTS);
    let facts_disk = directory.open(facts::AREA, facts_options).await?;
    let home_bytes = options.home_bytes / PAGE_BYTES as u64 * PAGE_BYTES as u64;
    let home_allocation = match options.home_preallocated {
        true => Allocation::Reserved,
        false => Allocation::Sparse,
    };
    let home_disk = area(&directory, home::AREA, home_bytes, home_allocation).await?;

    let mut report = RecoveryReport::default();
    let identity = options.identity;
    let owner = Owner {
        identity,
        slice_blocks: Some(options.slice_blocks),
    };
    let mut loaded = facts::load(&facts_disk, owner).await?;
    let header = read_header(&journal_disk, identity).await?;
    let facts_lost = StoreError::Lost {
        area: facts::AREA,
        what: "durable facts",
    };
    let (header, state) = match (header, &mut loaded.found) {
        (HeaderFound::Header { header, page_lost }, Found::Log(log)) => {
            report.header_page_lost = page_lost;
            (header, std::mem::take(&mut log.state))
        }
        (HeaderFound::Header { header, page_lost }, Found::Image(image)) => {
            report.header_page_lost = page_lost;
            (header, std::mem::take(&mut image.state))
        }
        (header @ HeaderFound::Nothing, Found::Nothing { is_bare: true })
        | (header @ HeaderFound::Header { .. }, Found::Nothing { .. }) => {
            let header = make(&journal_disk, identity, ring_bytes, header).await?;
            report.created = true;
            (header, FactsState::default())
        }
        (HeaderFound::Nothing | HeaderFound::Lost, _) => {
            return Err(StoreError::Lost {
                area: journal::AREA,
                what: "header pages",
            });
        }
        (HeaderFound::Header { .. }, Found::Lost) => return Err(facts_lost),
    };
    report.facts_copy_lost = !loaded.flaws.is_empty();
    if header.ring_bytes + RING_AT > journal_disk.size_bytes() {
        return Err(StoreError::Foreign {
            area: journal::AREA,
            what: "ring size",
        });
    }

    let opening = Home::open(
        home_disk,
        identity,
        options.bounds,
        report.created,
        header.home_edits,
    );
    let (home, home_scan) = opening.await?;
    if report.created && !home.is_blank() {
        return Err(facts_lost);
    }
    report.lost_runs = home_scan.lost_runs;
    let scanned = scan(&journal_disk, identity, header).await?;
    report.end = scanned.end;
    report.holes = scanned.holes;
    report.batches = scanned.batches.len() as u64;

    let mut amended = Amended::new(state);
    let found = Pieces {
        runtime,
        options,
        journal_disk,
        facts_directory: Some(directory),
        facts_disk,
        header,
        state: amended.state.clone(),
        home,
    };
    let inner = found.assembled(&scanned);
    let poison = inner.poison.clone();

    finish_removals(&inner, &mut amended).await?;
    replay(&inner, &mut amended, &scanned, &mut report);
    report.damaged_records += read_in_tail(&inner, scanned.batches).await;
    for slice in &home_scan.suspect {
        // Nothing tells since when: all of it has to be compared with another copy.
        amended.suspect(*slice, Seq(0));
    }
    inner.facts.settle(loaded, &amended.edits).await?;
    inner
        .home
        .discard_lost(&home_scan)
        .await
        .map_err(|error| poison.set(error))?;
    if report.header_page_lost {
        inner
            .journal
            .repair_header()
            .await
            .map_err(|error| poison.set(error))?;
    }
    inner.note_lost_records();
    report.suspect_slices = inner
        .facts
        .with(|facts| facts.suspects().iter().copied().collect());
    // The journal's end was decided here; from now on it is written there.
    writer::seal(&inner).await;
    poison.check()?;
    Ok((inner, report))
}

/// What a store is made of once its areas were read.
pub(crate) struct Pieces {
    pub(crate) runtime: Runtime,
    pub(crate) options: StoreOptions,
    pub(crate) journal_disk: Rc<dyn Disk>,
    /// `None`: the store is only looked at.
    pub(crate) facts_directory: Option<Rc<dyn Directory>>,
    pub(crate) facts_disk: Rc<dyn Disk>,
    pub(crate) header: Header,
    pub(crate) state: FactsState,
    pub(crate) home: Home,
}

impl Pieces {
    /// The store, with nothing of the journal in its index yet. Writes nothing.
    pub(crate) fn assembled(self, scanned: &Scanned) -> Rc<Inner> {
        let Self {
            runtime,
            options,
            journal_disk,
            facts_directory,
            facts_disk,
            header,
            state,
            home,
        } = self;
        let identity = options.identity;
        let poison = Rc::new(Poison::default());
        // Numbers a void speaks of stay below every batch to come, even if the last ones were cut.
        let voids = state.voids_behind(None).map(|void| void.before_lsn);
        let removals = state.removals_behind(None).map(|gone| gone.before_lsn);
        let next_lsn = voids.chain(removals).fold(scanned.next_lsn, u64::max);
        let (head, previous) = (scanned.head, scanned.previous);
        let journal = Journal::new(journal_disk, identity, header, head, next_lsn, previous);
        let facts = Facts::new(
            facts_directory,
            facts_disk,
            poison.clone(),
            (identity, options.slice_blocks),
            (options.bounds, runtime.random_below(1 << 32)),
            state,
        );
        let now = runtime.now();
        let inner = Rc::new(Inner {
            runtime,
            options,
            poison: poison.clone(),
            journal,
            home,
            facts: Rc::new(facts),
            slices: RefCell::default(),
            dirty: RefCell::default(),
            unsealed: RefCell::default(),
            released: RefCell::default(),
            home_writers: Mutex::new(()),
            pressure: Pressure::new(now, header.ring_bytes, &poison),
            space: SpaceReturn::default(),
            bad: BadBlocks::default(),
            unread: UnreadQueue::new(&poison),
        });
        for listener in [&inner.journal.wake, &inner.journal.progress] {
            poison.listen(listener.clone());
        }
        inner
    }
}

fn check(options: StoreOptions) -> Result<u64, StoreError> {
    if options.journal_bytes < JOURNAL_BYTES_MIN {
        return Err(StoreError::Options {
            reason: "journal_bytes is below 512 KiB",
        });
    }
    if options.home_bytes < HOME_BYTES_MIN {
        return Err(StoreError::Options {
            reason: "home_bytes is below 4 MiB",
        });
    }
    if options.slice_blocks == 0 || options.slice_blocks > 1 << 31 {
        return Err(StoreError::Options {
            reason: "slice_blocks is not within 1 to 2^31",
        });
    }
    Ok((options.journal_bytes - RING_AT) / PAGE_BYTES as u64 * PAGE_BYTES as u64)
}

async fn area(
    directory: &Rc<dyn Directory>,
    name: &'static str,
    size_bytes: u64,
    allocation: Allocation,
) -> Result<Rc<dyn Disk>, StoreError> {
    let options = DiskOptions {
        size_bytes,
        // What is written once before it is used is used like a journal.
        durable_writes: allocation == Allocation::Written,
        allocation,
    };
    Ok(directory.open(name, options).await?)
}

/// Writes the first header pages. Facts that are gone while the journal was in use are lost, not
/// new.
async fn make(
    disk: &Rc<dyn Disk>,
    identity: [u8; 16],
    ring_bytes: u64,
    found: HeaderFound,
) -> Result<Header, StoreError> {
    let lost = StoreError::Lost {
        area: facts::AREA,
        what: "durable facts",
    };
    let ring_bytes = match found {
        HeaderFound::Header { header, .. } if header.sequence > 1 => return Err(lost),
        HeaderFound::Header { header, .. } => header.ring_bytes,
        HeaderFound::Nothing => ring_bytes,
        HeaderFound::Lost => return Err(lost),
    };
    let header = Header {
        ring_bytes,
        sequence: 1,
        tail: 0,
        tail_lsn: 1,
        previous: 0,
        home_edits: 0,
    };
    if !scan(disk, identity, header).await?.batches.is_empty() {
        return Err(lost);
    }
    write_header(disk, identity, header).await?;
    Ok(header)
}

/// The facts as a recovery corrects them, and the edits that this takes.
pub(crate) struct Amended {
    pub(crate) state: FactsState,
    pub(crate) edits: Vec<Edit>,
}

impl Amended {
    pub(crate) fn new(state: FactsState) -> Self {
        Self {
            state,
            edits: Vec::new(),
        }
    }

    fn make(&mut self, edit: Edit) {
        self.state.apply(&edit);
        self.edits.push(edit);
    }

    /// Records of a slice above this point may have been lost.
    fn suspect(&mut self, key: SliceKey, point: Seq) {
        let known = self.state.slice(key).copied();
        let mut facts = known.unwrap_or_default();
        let earlier = facts.suspect.unwrap_or(point);
        facts.suspect = Some(earlier.min(point));
        if known != Some(facts) {
            self.make(Edit::Slice { key, facts });
        }
    }
}

/// Clears what a removal had not cleared yet, before anything is replayed over it.
async fn finish_removals(inner: &Inner, amended: &mut Amended) -> Result<(), StoreError> {
    let removals = amended.state.removals_behind(None);
    let begun: Vec<Removal> = removals.filter(|removal| !removal.cleared).collect();
    if begun.is_empty() {
        return Ok(());
    }
    let scopes: Vec<Scope> = begun.iter().map(|removal| removal.scope).collect();
    let cleared = inner.home.clear(&scopes).await;
    cleared.map_err(|error| inner.poison.set(error))?;
    for removal in begun {
        amended.make(Edit::RemovalCleared {
            scope: removal.scope,
            before_lsn: removal.before_lsn,
        });
    }
    Ok(())
}

/// Enters the journal's batches into the index, and what a hole means into the facts. Writes
/// nothing.
pub(crate) fn replay(
    inner: &Inner,
    amended: &mut Amended,
    scanned: &Scanned,
    report: &mut RecoveryReport,
) {
    let state = &amended.state;
    let mut slices: BTreeMap<SliceKey, SliceIndex> = BTreeMap::new();
    for (key, found) in state.slices_in(..) {
        let index = slices.entry(key).or_default();
        index.stable = found.stable;
        index.home_through = found.destaged;
    }
    // Slices that may have lost records in a hole, with the next record each would have had.
    let mut unproven: BTreeMap<SliceKey, Seq> = BTreeMap::new();
    let mut suspect: BTreeSet<SliceKey> = BTreeSet::new();
    let mut unpinned = Vec::new();
    let voided = Voided::of(state);
    for batch in &scanned.batches {
        inner
            .journal
            .hold(batch.lsn, batch.position, batch.previous, &batch.items);
        if batch.after_hole {
            doubt_all(inner, &slices, &mut unproven);
        }
        let mut pins = 0;
        for item in &batch.items {
            if voided.has(item, batch.lsn) {
                report.voided_records += 1;
                continue;
            }
            if scanned.holes > 0 && item.kind.is_stream() && !item.relocated {
                match unproven.remove(&item.slice) {
                    Some(expected) if expected != item.seq => {
                        suspect.insert(item.slice);
                    }
                    Some(_) | None => {}
                }
            }
            if planted::is_active(Bug::DamagedIsAbsent) && item.is_damaged() {
                continue;
            }
            report.damaged_records += u64::from(item.is_damaged());
            report.records += u64::from(item.kind != Kind::Stable);
            if item.kind.has_data() {
                inner.home.claim(item.slice, item.first_block, item.blocks);
            }
            let index = slices.entry(item.slice).or_default();
            index.replaying = true;
            let elsewhere = item.relocated && !index.holds(item.seq, item.view);
            pins += u64::from(if elsewhere {
                index.insert_relocated(item, batch.lsn, &mut unpinned)
            } else {
                index.insert(item, batch.lsn, &mut unpinned)
            });
            inner.dirty.borrow_mut().insert(item.slice);
        }
        inner.journal.pin(batch.lsn, pins);
    }
    for (key, index) in &mut slices {
        index.replaying = false;
        index.reserved = index.durable;
        if state
            .slice(*key)
            .is_some_and(|found| found.copy == CopyState::InSync)
        {
            index.reserved = index.reserved.max(index.stable);
        }
    }
    if scanned.ends_in_hole {
        doubt_all(inner, &slices, &mut unproven);
    }
    suspect.extend(unproven.into_keys());
    if planted::is_active(Bug::DamagedIsAbsent) {
        suspect.clear();
    }
    if scanned.holes > 0 {
        // A joining copy may have lost copied blocks, of which nothing keeps count.
        let joining = state.slices_in(..).filter(|(_, found)| match found.copy {
            CopyState::Joining { .. } => true,
            CopyState::InSync | CopyState::Absent => false,
        });
        suspect.extend(joining.map(|(key, _)| key));
    }
    for key in suspect {
        reach::note(Row::SliceSuspect);
        let found = amended.state.slice(key).copied().unwrap_or_default();
        let point = match found.copy {
            CopyState::InSync => found.destaged,
            CopyState::Joining { base } => base,
            CopyState::Absent => Seq(0),
        };
        amended.suspect(key, point);
    }
    if !slices.is_empty() {
        inner.pressure.something_destageable();
    }
    *inner.slices.borrow_mut() = slices;
    *inner.released.borrow_mut() = unpinned;
    if scanned.holes > 0 {
        reach::note(Row::JournalDamaged);
        if !amended.state.hole() {
            amended.make(Edit::Hole);
        }
    }
}

/// Reads the data of records above the stable point, and leaves the rest for later. Returns how
/// many of those records are damaged.
async fn read_in_tail(inner: &Inner, batches: Vec<ScannedBatch>) -> u64 {
    let mut ring = inner.journal.ring();
    let mut damaged = 0;
    for ScannedBatch { mut items, .. } in batches {
        items.retain(|item| item.unread.is_some());
        let is_tail = {
            let slices = inner.slices.borrow();
            items.iter().any(|item| {
                let index = slices.get(&item.slice);
                index.is_some_and(|index| index.is_unstable(item))
            })
        };
        if is_tail {
            damaged += inner.read_in_items(&mut ring, items).await;
        } else if !items.is_empty() {
            inner.unread.push(items);
        }
    }
    damaged
}

/// A hole: every slice may have lost records, from the next that it would have had.
fn doubt_all(
    inner: &Inner,
    slices: &BTreeMap<SliceKey, SliceIndex>,
    unproven: &mut BTreeMap<SliceKey, Seq>,
) {
    let known = slices.iter().map(|(key, index)| (*key, index));
    // Not the stable point: what is stable may not have reached the home yet.
    unproven.extend(known.map(|(key, i)| (key, i.durable.max(i.home_through).next())));
    for key in inner.home.slices() {
        unproven.entry(key).or_insert(Seq(1));
    }
}

/// What of the journal does not count, arranged by what it is about.
struct Voided {
    removed_before: BTreeMap<Scope, u64>,
    voids: BTreeMap<SliceKey, Vec<Void>>,
}

impl Voided {
    fn of(state: &FactsState) -> Self {
        let mut removed_before: BTreeMap<Scope, u64> = BTreeMap::new();
        for removal in state.removals_behind(None) {
            let before = removed_before.entry(removal.scope).or_default();
            *before = removal.before_lsn.max(*before);
        }
        let mut voids: BTreeMap<SliceKey, Vec<Void>> = BTreeMap::new();
        for void in state.voids_behind(None) {
            voids.entry(void.slice).or_default().push(void);
        }
        Self {
            removed_before,
            voids,
        }
    }

    fn has(&self, item: &Item, lsn: u64) -> bool {
        let scopes = [Scope::Volume(item.slice.volume), Scope::Slice(item.slice)];
        let removed = scopes.iter().any(|scope| {
            let before = self.removed_before.get(scope);
            before.is_some_and(|before| lsn < *before)
        });
        let voids = self.voids.get(&item.slice).into_iter().flatten();
        removed
            || item.kind.is_stream()
                && voids
                    .into_iter()
                    .any(|void| item.seq > void.keep_through && lsn < void.before_lsn)
    }
}
