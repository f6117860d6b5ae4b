//! What an open owner looks after while something is under way: it repeats records that were
//! lost, tells idle copies the stable position, and asks that copies that fail be taken out.
//!
//! Only slices that need attention are looked at; without any, nothing wakes.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use holdfast_config::state::{Change, Outcome, Refusal};
use holdfast_replica::stream::Role;
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Instant, NodeId};
use holdfast_wire::Seq;
use holdfast_wire::replica::SlicePosition;

use super::Owner;
use super::slice::Slice;
use super::waiting::{WaitReason, Waiting};

/// While some copy owes an acknowledgement, or a stable position, it is looked after this often.
const TICK: Duration = Duration::from_millis(100);
/// A required copy that has not moved for this long is taken out of the in-sync set, although
/// its node counts as running: the initiator's timeouts are near.
const REMOVE_AFTER: Duration = Duration::from_millis(3000);
/// A copy that owes an acknowledgement for this long is named in the status.
const NOTABLE: Duration = Duration::from_millis(500);
/// Records kept for a joining copy that does not keep up; beyond, it has to begin again.
const JOINING_WINDOW_BYTES: usize = 8 << 20;
const PROPOSAL_LIMIT: Duration = Duration::from_millis(3000);
/// Most slices of one message that tells stable positions.
const TOLD_AT_ONCE: usize = 512;

/// A copy that is to be told the stable position of its slice.
struct Telling {
    slice: u32,
    stable: Seq,
    session: u64,
}

/// Copies of a slice that fail.
#[derive(Debug, Default, PartialEq, Eq)]
struct Laggards {
    /// These have to be removed by agreement.
    required: Vec<NodeId>,
    /// These are forgotten, and begin anew.
    joining: Vec<NodeId>,
}

impl Laggards {
    fn of(slice: &Slice, now: Instant) -> Self {
        let mut laggards = Self::default();
        let window = slice.stream.window_bytes();
        for (node, member) in slice.stream.members() {
            let owes = member.durable.next() < slice.stream.next();
            let silent = owes && member.silent_for(now) >= REMOVE_AFTER;
            // A promotion under way decides first; the next look comes back here.
            let is_promoted = slice.promoting.contains(node);
            match member.role {
                Role::Required if (silent || member.failed) && !is_promoted => {
                    laggards.required.push(*node);
                }
                Role::Joining if member.failed || window > JOINING_WINDOW_BYTES => {
                    laggards.joining.push(*node);
                }
                Role::Required | Role::Joining => {}
            }
        }
        laggards
    }
}

impl Owner {
    /// Looks after slices that need attention; sleeps while there are none.
    pub(crate) async fn keep_ticking(self: Rc<Self>) {
        loop {
            self.slices.wanted().await;
            self.tick().await;
            self.context.runtime.sleep(TICK).await;
        }
    }

    /// One round, in parts.
    async fn tick(self: &Rc<Self>) {
        let mut from = Some(0);
        while let Some(first) = from {
            let part = self.slices.attended_from(first);
            from = part.last().and_then(|last| last.checked_add(1));
            self.look_after(part);
            tokio::task::yield_now().await;
        }
    }

    fn look_after(self: &Rc<Self>, part: Vec<u32>) {
        let now = self.context.runtime.now();
        let mut tellings: BTreeMap<NodeId, Vec<Telling>> = BTreeMap::new();
        let mut failing: BTreeMap<NodeId, Vec<u32>> = BTreeMap::new();
        for index in part {
            let looked_after = self.slices.with(index, |slice| {
                let stable = slice.stream.stable();
                for (node, session) in slice.begin_telling() {
                    tellings.entry(node).or_default().push(Telling {
                        slice: index,
                        stable,
                        session,
                    });
                }
                let mut repeated_at = std::mem::take(&mut slice.repeated_at);
                let commands = slice.stream.on_tick(now, &mut repeated_at);
                slice.repeated_at = repeated_at;
                let outgoing = slice.absorb(commands);
                let laggards = Laggards::of(slice, now);
                for node in laggards.required {
                    failing.entry(node).or_default().push(index);
                }
                for node in laggards.joining {
                    reach::note(Row::JoiningDropped);
                    let commands = slice.stream.remove(node);
                    slice.absorb(commands);
                    self.resyncs.look_again();
                }
                (slice.key, stable, outgoing, slice.is_settled())
            });
            let Some((key, stable, outgoing, is_settled)) = looked_after else {
                continue;
            };
            if is_settled {
                self.slices.leave(index);
            }
            self.send(key, stable, outgoing);
        }
        self.tell_stable(tellings);
        for (node, slices) in failing {
            self.remove_copies(node, slices);
        }
    }

    /// Tells copies the stable position of their slices; what fails the next tick tells again.
    fn tell_stable(self: &Rc<Self>, tellings: BTreeMap<NodeId, Vec<Telling>>) {
        for (node, mut tellings) in tellings {
            while !tellings.is_empty() {
                let rest = tellings.split_off(tellings.len().min(TOLD_AT_ONCE));
                let part = std::mem::replace(&mut tellings, rest);
                let owner = self.clone();
                self.spawn("owner-tell-stable", async move {
                    owner.tell_some(node, part).await;
                });
            }
        }
    }

    async fn tell_some(&self, node: NodeId, tellings: Vec<Telling>) {
        let positions = tellings.iter().map(|telling| SlicePosition {
            slice: telling.slice,
            seq: telling.stable.0,
        });
        let told = self.calls.tell_stable(node, positions.collect()).await;
        for Telling {
            slice,
            stable,
            session,
        } in tellings
        {
            let heard = told.contains(&slice);
            self.slices.with(slice, |slice| {
                slice.end_telling(node, session, stable, heard);
            });
        }
    }

    /// Asks the config group to take copies out of the in-sync sets; what it decided is seen in
    /// its state. One request per node at a time.
    pub(crate) fn remove_copies(self: &Rc<Self>, node: NodeId, slices: Vec<u32>) {
        let mut removing = self.removing.borrow_mut();
        if let Some(later) = removing.get_mut(&node) {
            // One at a time: they are compared with the config state again when it is decided.
            later.extend(slices);
            return;
        }
        removing.insert(node, slices.iter().copied().collect());
        drop(removing);
        reach::note(Row::CopyRemoved);
        tracing::info!(volume = %self.volume, slices = slices.len(), %node, "taking copies out");
        let (volume, view) = (self.volume, self.view);
        let change = Change::RemoveCopies {
            volume,
            view,
            slices,
            node,
        };
        let proposed = self.context.config.propose(change, PROPOSAL_LIMIT);
        let owner = self.clone();
        self.spawn("owner-remove-copies", async move {
            let outcome = proposed.await;
            let removed = owner.removing.borrow_mut().remove(&node);
            match outcome {
                // The last copy of a slice fails: only a new takeover can set it up again.
                Some(Outcome::Refused(Refusal::LastCopy)) => owner.close(),
                Some(_) | None => {
                    owner.slices.follow(removed.into_iter().flatten());
                    owner.resyncs.look_again();
                }
            }
        });
    }

    /// What keeps an open owner from answering, if anything has for a while.
    pub(crate) fn stalled(&self) -> Option<Waiting> {
        if !self.gate.is_open() {
            return None;
        }
        let now = self.context.runtime.now();
        let mut silent: BTreeMap<NodeId, Instant> = BTreeMap::new();
        for index in self.slices.attended() {
            self.slices.with(index, |slice| {
                for (node, member) in slice.stream.members() {
                    let owes = member.durable.next() < slice.stream.next();
                    let silence = member.silent_for(now);
                    if member.role == Role::Required && owes && silence >= NOTABLE {
                        let since = now.as_nanos().saturating_sub(silence.as_nanos() as u64);
                        let since = Instant::from_nanos(since);
                        let first = silent.entry(*node).or_insert(since);
                        *first = since.min(*first);
                    }
                }
            });
        }
        let Some(since) = silent.values().min().copied() else {
            return self.placing.waiting().or_else(|| self.lapsed_leases());
        };
        let removing: BTreeSet<NodeId> = self.removing.borrow().keys().copied().collect();
        let reason = if removing.is_empty() {
            WaitReason::Acknowledgement(silent.into_keys().collect())
        } else {
            WaitReason::Removal(removing)
        };
        Some(Waiting { reason, since })
    }
}

#[cfg(test)]
mod tests {
    use holdfast_runtime::Incarnation;
    use holdfast_wire::SliceKey;

    use super::super::history::{Memory, SliceHistory};
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn at(ms: u64) -> Instant {
        Instant::default() + Duration::from_millis(ms)
    }

    fn slice(roles: &[(NodeId, Role)]) -> Slice {
        let key = SliceKey {
            volume: 1,
            slice: 0,
        };
        let history = SliceHistory::new(Memory::of_nothing(), 16);
        let mut slice = Slice::new(key, Seq(0), history);
        for (node, role) in roles {
            slice
                .stream
                .add(at(0), *node, Incarnation(1), node.0, *role);
        }
        slice
    }

    fn write(slice: &mut Slice, bytes: usize) {
        let record = holdfast_store::Record {
            slice: slice.key,
            view: holdfast_wire::View(1),
            seq: slice.stream.next(),
            stable: slice.stream.stable(),
            operation: holdfast_store::OperationId::default(),
            body: holdfast_store::Body::Nothing,
        };
        slice.stream.submit(at(0), Rc::new(record), bytes);
    }

    #[test]
    fn a_required_copy_fails_when_it_says_so_or_owes_for_too_long() {
        let mut slice = slice(&[(A, Role::Required), (B, Role::Required)]);
        assert_eq!(Laggards::of(&slice, at(9_000)), Laggards::default());
        write(&mut slice, 1);
        slice.stream.on_ack(at(10), A, A.0, Seq(1), 1, false);
        assert_eq!(Laggards::of(&slice, at(2_999)).required, []);
        assert_eq!(Laggards::of(&slice, at(3_000)).required, [B]);
        slice.stream.on_ack(at(20), A, A.0, Seq(1), 1, true);
        assert_eq!(Laggards::of(&slice, at(30)).required, [A]);
        slice.promoting.push(A);
        assert_eq!(Laggards::of(&slice, at(30)).required, []);
    }

    #[test]
    fn a_joining_copy_fails_when_it_does_not_keep_up() {
        let mut slice = slice(&[(A, Role::Required), (B, Role::Joining)]);
        write(&mut slice, JOINING_WINDOW_BYTES);
        assert_eq!(Laggards::of(&slice, at(9_000)).joining, []);
        write(&mut slice, 1);
        assert_eq!(Laggards::of(&slice, at(10)).joining, [B]);
    }
}
