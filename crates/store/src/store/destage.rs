//! The task that moves stable blocks from the journal to the home and frees the ring.
//!
//! A block that is overwritten while its record is still in the ring never goes home: so rounds
//! come late, and take only what they have to. Under writes a round empties the oldest part of a
//! ring that is half full: of the blocks there, those that nothing newer in the ring replaces.
//! When nobody writes any more, or what waits is old, a *whole* round empties all of it.
//!
//! One round, in this order:
//! 1. note the stable points and choose the newest effective version of each block, if the part
//!    of the ring that is to be emptied has it;
//! 2. make those stable points durable: from here on recovery knows what the home may hold, and
//!    that the versions which stay in the ring count;
//! 3. write blocks and descriptions, sync;
//! 4. forget the versions, and older ones of blocks whose newest stays, take their pins off,
//!    write the new tail.
//!
//! A crash between any two leaves the whole record in the journal, or its block whole in the
//! home. What other code unpins meanwhile rests on stable points that may be newer than those
//! of step 2, so it is taken off in the next round.
//!
//! Tested with the whole store: `tests/basics.rs`, `tests/crashes.rs`; when rounds are due beside
//! [`super::pressure`].

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::work::Counted;
use tokio::task::yield_now;

use crate::error::StoreError;
use crate::facts::{Change, StablePoint};
use crate::home::Arrival;
use crate::home::fact::{EXTENT_BLOCKS, State};
use crate::journal::Submission;
use crate::journal::index::{Newest, Version};
use crate::journal::item::Content;
use crate::record::{CopyState, Seq, SliceKey};
use crate::store::Inner;
use crate::store::pressure::Round;

/// A whole round begins when nothing was appended for so long,
const IDLE: Duration = Duration::from_secs(1);
/// or when destageable blocks have waited for so long. It bounds, with the size of the ring, what
/// a recovery has to replay and what memory holds.
const AGE_MAX: Duration = Duration::from_secs(30);

/// Slices of a round that are looked at before others have their turn.
const SLICES_AT_ONCE: usize = 64;

/// Runs rounds when the ring fills, when asked, and a while after something became stable.
pub(crate) async fn run(inner: Rc<Inner>) {
    // A failure has poisoned the store, which every round asks.
    if !planted::is_active(Bug::DestageUnread) {
        let _ = inner.recovered().await;
    }
    loop {
        inner.pressure.due(&inner.runtime, IDLE, AGE_MAX).await;
        let is_well = inner.poison.check().is_ok();
        let Some(round) = is_well.then(|| inner.pressure.begin()).flatten() else {
            inner.pressure.ended();
            continue;
        };
        let (through_lsn, zeroes) = match round {
            Round::Whole => (inner.journal.written_lsn(), inner.zeroes_at_rest()),
            Round::Part => (inner.journal.oldest_part(), Vec::new()),
        };
        // A failure has poisoned the store; whoever waits asks the poison.
        let carried_out = carry_out(&inner, through_lsn).await;
        if carried_out.is_ok() {
            inner.space.came_home(&zeroes);
            inner.pressure.done(round);
        }
        inner.pressure.ended();
        if carried_out.is_ok() {
            // A failure has poisoned the store here too.
            let _ = tidy(&inner).await;
        }
        inner.pressure.ask_again();
    }
}

/// Waits for a whole round that begins after this call.
pub(crate) async fn flush(inner: &Rc<Inner>) -> Result<(), StoreError> {
    let wanted = inner.pressure.next_whole();
    loop {
        let ended = inner.pressure.next_end();
        let mut ended = std::pin::pin!(ended);
        ended.as_mut().enable();
        inner.poison.check()?;
        if inner.pressure.is_ended(wanted) {
            return Ok(());
        }
        inner.pressure.press_whole();
        ended.await;
    }
}

/// What one round does to one slice.
struct Plan {
    slice: SliceKey,
    through: Seq,
    /// Where an earlier, completed round left this slice.
    home_through: Seq,
    /// The newest effective version of every block that has one in the part that is emptied.
    newest: BTreeMap<u32, Newest>,
}

async fn carry_out(inner: &Rc<Inner>, through_lsn: u64) -> Result<(), StoreError> {
    let _writers = inner.home_writers.lock().await;
    let released = std::mem::take(&mut *inner.released.borrow_mut());
    let dirty = std::mem::take(&mut *inner.dirty.borrow_mut());
    let (plans, arrivals) = plan(inner, &dirty, through_lsn).await;
    if !planted::is_active(Bug::DestageBeforeStable) {
        persist_stable(inner, &plans).await?;
    }
    let is_early = planted::is_active(Bug::FreeJournalEarly);
    if is_early {
        let_go(inner, &plans, &released, through_lsn).await?;
    }
    if !arrivals.is_empty() {
        inner
            .home
            .install(&arrivals)
            .await
            .map_err(|error| inner.poison.set(error))?;
        inner.settle_bad(&arrivals);
    }
    if !is_early {
        let_go(inner, &plans, &released, through_lsn).await?;
    }
    relocate(inner);
    let (ring, used) = inner.journal.usage();
    inner.pressure.ring_emptied(ring, used);
    Ok(())
}

/// Frees what the journal held for these plans, and what was released before them.
async fn let_go(
    inner: &Rc<Inner>,
    plans: &[Plan],
    released: &[u64],
    through_lsn: u64,
) -> Result<(), StoreError> {
    let mut unpinned = released.to_vec();
    let mut touched = BTreeSet::new();
    for (count, plan) in plans.iter().counted().enumerate() {
        if count % SLICES_AT_ONCE == SLICES_AT_ONCE - 1 {
            yield_now().await;
        }
        let mut slices = inner.slices.borrow_mut();
        let Some(index) = slices.get_mut(&plan.slice) else {
            continue;
        };
        let extents = plan.newest.keys().map(|block| block / EXTENT_BLOCKS);
        touched.extend(extents.map(|extent| (plan.slice, extent)));
        index.settle(plan.through, through_lsn, &plan.newest, &mut unpinned);
        if inner.copy_state(plan.slice) == CopyState::InSync {
            let through = index.settled_through(plan.through);
            index.home_through = index.home_through.max(through);
        }
        if !index.is_settled() {
            inner.dirty.borrow_mut().insert(plan.slice);
        }
    }
    inner.journal.unpin(&unpinned);
    let gone = inner
        .journal
        .advance(inner.home.edits())
        .await
        .map_err(|error| inner.poison.set(error))?;
    inner.evict(gone);
    inner.renew_promises(&touched);
    forget_voided(inner).await
}

impl Inner {
    /// These records have left the ring.
    fn evict(&self, gone: Vec<(SliceKey, Seq, u64)>) {
        let mut slices = self.slices.borrow_mut();
        for (slice, seq, lsn) in gone {
            if let Some(index) = slices.get_mut(&slice) {
                index.evict(seq, lsn);
            }
        }
    }
}

/// Forgets what was voided or removed in batches that have left the journal, if anything was.
async fn forget_voided(inner: &Inner) -> Result<(), StoreError> {
    let tail_lsn = inner.journal.tail_lsn();
    if !inner.facts.with(|facts| facts.has_before(tail_lsn)) {
        return Ok(());
    }
    inner.facts.update([Change::Forget { tail_lsn }]).await
}

/// Keeps the home in order until nothing is left to do, or a round is wanted. One step at least:
/// what rounds leave behind must not pile up while one follows the other.
async fn tidy(inner: &Rc<Inner>) -> Result<(), StoreError> {
    loop {
        let _writers = inner.home_writers.lock().await;
        let tidied = match inner.home.tidy_map().await {
            Ok(false) => inner.home.collect_some().await,
            outcome => outcome,
        };
        if !tidied.map_err(|error| inner.poison.set(error))? || inner.pressure.is_urgent() {
            return Ok(());
        }
    }
}

/// A version that may go home.
struct Candidate {
    slice: SliceKey,
    block: u32,
    version: Version,
    /// What the home has may be newer.
    is_doubtful: bool,
}

/// Chooses what goes home. The caller holds the lock of the home's writers, so what is looked up
/// there stays.
async fn plan(
    inner: &Inner,
    dirty: &BTreeSet<SliceKey>,
    through_lsn: u64,
) -> (Vec<Plan>, Vec<Arrival>) {
    let (plans, candidates) = candidates(inner, dirty, through_lsn).await;
    let mut arrivals = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let Candidate {
            slice,
            block,
            version,
            is_doubtful,
        } = candidate;
        if is_doubtful && let Some(fact) = inner.home.find(slice, block).await {
            let certain = !fact.is_lost() || !version.replayed;
            if !certain || fact.seq > version.seq {
                continue;
            }
        }
        arrivals.push(arrival(slice, block, version));
    }
    (plans, arrivals)
}

/// Others have their turn between slices: each is judged as it is at one moment, and what comes
/// into the ring meanwhile stays there.
async fn candidates(
    inner: &Inner,
    dirty: &BTreeSet<SliceKey>,
    through_lsn: u64,
) -> (Vec<Plan>, Vec<Candidate>) {
    let mut touched = inner.journal.blocks_through(through_lsn);
    let mut plans = Vec::new();
    let mut candidates = Vec::new();
    for (count, slice) in dirty.iter().counted().enumerate() {
        if count % SLICES_AT_ONCE == SLICES_AT_ONCE - 1 {
            yield_now().await;
        }
        let slices = inner.slices.borrow();
        let Some(index) = slices.get(slice) else {
            continue;
        };
        let mut newest = BTreeMap::new();
        let joining = inner.remembers_zeroes(*slice);
        let damaged = inner.home.is_damaged();
        for block in touched.remove(slice).into_iter().flatten().flatten() {
            let Some(version) = index.newest_effective(block) else {
                continue;
            };
            newest.insert(block, Newest::of(&version));
            let is_zero = version.content == Content::Zero;
            let stays = version.lsn > through_lsn;
            // It stays, and in the ring it is as durable as at home. But where it zeroes what is
            // about to leave the ring, the home has to say so from now on: a copy that was away
            // may have that, and will ask what has changed.
            let is_traced = is_zero && index.is_traced_in(block, through_lsn);
            if stays && !is_traced {
                continue;
            }
            // Zeroing what was never written changes nothing.
            let is_plain = !is_traced && !joining && !damaged && index.is_plain_zero(&version);
            if is_plain && !inner.home.is_claimed(*slice, block) {
                continue;
            }
            // In a copy in sync the stream is newer than whatever it had brought home. But a
            // zeroed range that was journaled again outlives what replaced it.
            let is_doubtful = joining
                || damaged
                || is_zero
                || version.copied
                || version.replayed
                || version.seq <= index.joined_through;
            candidates.push(Candidate {
                slice: *slice,
                block,
                version,
                is_doubtful,
            });
        }
        let (through, home_through) = (index.stable, index.home_through);
        plans.push(Plan {
            slice: *slice,
            through,
            home_through,
            newest,
        });
    }
    (plans, candidates)
}

fn arrival(slice: SliceKey, block: u32, version: Version) -> Arrival {
    let (state, checksum, data) = match version.content {
        Content::Data(data, checksum) => (State::Present, checksum, data),
        Content::Zero => (State::Zero, 0, bytes::Bytes::new()),
        // No round begins before all is read in.
        Content::Unread(_) | Content::Unknown => (State::Unknown, 0, bytes::Bytes::new()),
    };
    Arrival {
        slice,
        block,
        seq: version.seq,
        view: version.view,
        state,
        checksum,
        data,
    }
}

/// Makes the plans' stable points durable.
async fn persist_stable(inner: &Inner, plans: &[Plan]) -> Result<(), StoreError> {
    let point = |plan: &Plan| StablePoint {
        slice: plan.slice,
        stable: plan.through,
        home_through: plan.home_through,
    };
    let tail_lsn = inner.journal.tail_lsn();
    let changes = [
        Change::Stable(plans.iter().map(point).collect()),
        Change::Forget { tail_lsn },
    ];
    inner.facts.update(changes).await
}

/// Journals unstable records again that would otherwise hold a crowded ring's tail for as long
/// as their owner stays silent. Only where that frees more than it takes.
fn relocate(inner: &Inner) {
    let Some(through_lsn) = inner.journal.crowded_through() else {
        return;
    };
    let slices = inner.slices.borrow();
    // All at once, though it looks at every slice, for some ten nanoseconds each: in a batch behind
    // it, a truncation or removal under way would not void them.
    let settled = slices
        .iter()
        .filter(|(key, index)| index.truncations == 0 && !inner.space.is_removing(**key));
    let mut items: Vec<_> = settled
        .flat_map(|(_, index)| index.pinned_tail(through_lsn))
        .collect();
    drop(slices);
    items.sort_by_key(|(lsn, _)| *lsn);
    let bytes: u64 = items.iter().map(|(_, item)| item.data.len() as u64).sum();
    let (ring, _) = inner.journal.usage();
    let mut queue = inner.journal.queue.borrow_mut();
    let already = queue
        .iter()
        .any(|submission| submission.items.iter().any(|i| i.relocated));
    if items.is_empty() || bytes > ring / 16 || already {
        return;
    }
    reach::note(Row::JournalRelocates);
    // In front: what waits in the queue waits for the room that this makes.
    let items = items.into_iter().map(|(_, item)| item).collect();
    queue.push_front(Submission { items, reply: None });
    drop(queue);
    inner.journal.wake.notify_one();
}
