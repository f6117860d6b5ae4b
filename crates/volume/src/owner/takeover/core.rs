//! The decisions of a takeover. Pure: an event in, commands out.
//!
//! ```text
//!            every slice has a complete copy,           every slice has a copy
//!            and all answered or patience is over       that is set up
//!  Fencing ─────────────────────────────────► Settling ───────────────────► Agreeing ──► Open
//!     ▲                                          │ none of a slice              │
//!     └──────────────────── Restart ◄────────────┴──────────────────────────────┘ a copy restarted
//! ```
//!
//! The table of cases is in the header of the shell, [`super`]; the tests of this file are named
//! after its rows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_config::state::Reconciled;
use holdfast_replica::holder_takeover::union_of_tails;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Incarnation, Instant, NodeId};
use holdfast_store::OperationId;
use holdfast_wire::replica::{CopyReport, RecordHeader, StreamStart};
use holdfast_wire::{Seq, View};

use super::super::history::Memory;
use super::super::waiting::WaitReason;

/// Streams that one message begins.
pub(crate) const STREAMS_AT_ONCE: usize = 512;

/// A record of the union, with the nodes that hold exactly it.
pub(crate) type UnionRecord = (RecordHeader, Vec<NodeId>);

/// What one node reported, with the start of it that did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Witness {
    pub(crate) incarnation: Incarnation,
    pub(crate) free_bytes: u64,
    pub(crate) copies: BTreeMap<u32, CopyReport>,
}

/// One slice whose copies were made identical.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) last: Seq,
    /// The copies, each with the number of its new stream.
    pub(crate) sessions: BTreeMap<NodeId, u64>,
    /// Of them, those that know already that all of it is stable.
    pub(crate) told: BTreeSet<NodeId>,
    pub(crate) operations: Vec<(OperationId, View, Seq)>,
    pub(crate) memory: Memory,
}

/// A copy that lacks records of the union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repair {
    pub(crate) node: NodeId,
    pub(crate) slice: u32,
    pub(crate) session: u64,
    /// It holds the union up to here.
    pub(crate) keep_through: Seq,
    /// What comes after that.
    pub(crate) lacks: Vec<UnionRecord>,
}

/// What the config group made of the opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agreement {
    /// The volume is open.
    Done,
    /// Some slice would have no copy: one that was reconciled has restarted since.
    RestartedCopy,
    /// Refused, as another view is in force; or unknown, and only a new view helps.
    Over,
}

/// What has happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The nodes that count as running now.
    Look { running: BTreeSet<NodeId> },
    /// A node answered the fence, or did not.
    Fenced(NodeId, Option<Witness>),
    /// A node was asked to begin these streams, and did some of it.
    Begun {
        node: NodeId,
        asked: Vec<StreamStart>,
        done: BTreeSet<u32>,
    },
    /// A copy that lacked records has them, or could not get them.
    Repaired(Repair, bool),
    /// The config group has decided.
    Agreed(Agreement),
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Command {
    /// Ask a node for its promise and its copies of these slices.
    Fence(NodeId, Vec<u32>),
    /// Begin these streams on a node.
    Begin(NodeId, Vec<StreamStart>),
    /// Give a copy what it lacks, then begin its stream.
    Repair(Repair),
    /// Ask the config group for the opening.
    Propose(Reconciled),
    /// For the status.
    Wait(WaitReason),
    /// Look again in a moment.
    LookAgain,
    /// Begin anew, with the directory as it is then.
    Restart(WaitReason),
    /// The office is over.
    Close,
    /// Serve.
    Open(Opening),
}

/// What an owner opens with.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    pub(crate) slices: BTreeMap<u32, Settled>,
    /// The starts of the nodes that were fenced, and the space that they have.
    pub(crate) present: BTreeMap<NodeId, (Incarnation, u64)>,
}

#[derive(Debug)]
enum Stage {
    Fencing {
        asked: BTreeSet<NodeId>,
    },
    Settling {
        settled: BTreeMap<u32, Settled>,
        pending: usize,
    },
    Agreeing {
        settled: BTreeMap<u32, Settled>,
    },
    Ended,
}

/// One attempt to take a volume over. See the module's header.
pub(crate) struct Takeover {
    /// The copies that are asked, of each placed slice.
    copies: BTreeMap<u32, Vec<NodeId>>,
    give_up: Instant,
    running: BTreeSet<NodeId>,
    witnesses: BTreeMap<NodeId, Witness>,
    stage: Stage,
    last_session: u64,
}

impl Takeover {
    /// Of a volume with these copies in sync. Nodes that count as running are waited for until
    /// `patience` is over. Streams get numbers after `last_session`.
    pub(crate) fn new(
        now: Instant,
        copies: BTreeMap<u32, Vec<NodeId>>,
        patience: Duration,
        last_session: u64,
    ) -> Self {
        Self {
            copies,
            give_up: now + patience,
            running: BTreeSet::new(),
            witnesses: BTreeMap::new(),
            stage: Stage::Fencing {
                asked: BTreeSet::new(),
            },
            last_session,
        }
    }

    /// The highest number that a stream has got.
    pub(crate) fn last_session(&self) -> u64 {
        self.last_session
    }

    pub(crate) fn handle(&mut self, now: Instant, event: Event) -> Vec<Command> {
        match event {
            Event::Look { running } => {
                self.running = running;
                self.look(now)
            }
            Event::Fenced(node, answer) => self.fenced(now, node, answer),
            Event::Begun { node, asked, done } => {
                let parts = asked.iter().map(|start| {
                    let begun = done.contains(&start.slice);
                    (start.slice, node, start.session, begun)
                });
                self.set_up(parts.collect())
            }
            Event::Repaired(repair, done) => {
                let Repair {
                    node,
                    slice,
                    session,
                    ..
                } = repair;
                self.set_up(vec![(slice, node, session, done)])
            }
            Event::Agreed(agreement) => self.agreed(agreement),
        }
    }

    /// Running nodes with copies that have not reported.
    fn missing(&self) -> BTreeMap<NodeId, Vec<u32>> {
        let mut missing: BTreeMap<NodeId, Vec<u32>> = BTreeMap::new();
        for (slice, nodes) in &self.copies {
            for node in nodes {
                if self.running.contains(node) && !self.witnesses.contains_key(node) {
                    missing.entry(*node).or_default().push(*slice);
                }
            }
        }
        missing
    }

    fn is_covered(&self) -> bool {
        self.copies.keys().all(|slice| {
            let mut reports = self.witnesses.values();
            reports.any(|witness| witness.copies.get(slice).is_some_and(|copy| copy.complete))
        })
    }

    fn look(&mut self, now: Instant) -> Vec<Command> {
        let missing = self.missing();
        let Stage::Fencing { asked } = &mut self.stage else {
            return Vec::new();
        };
        let nodes: BTreeSet<NodeId> = missing.keys().copied().collect();
        let mut commands: Vec<Command> = missing
            .into_iter()
            .filter(|(node, _)| asked.insert(*node))
            .map(|(node, slices)| Command::Fence(node, slices))
            .collect();
        let covered = self.is_covered();
        if covered && (nodes.is_empty() || now >= self.give_up) {
            if !nodes.is_empty() {
                reach::note(Row::FenceLeftOut);
            }
            return self.settle();
        }
        if !nodes.is_empty() {
            commands.push(Command::Wait(WaitReason::Fence(nodes)));
        } else if !covered {
            reach::note(Row::NoCompleteCopy);
            commands.push(Command::Wait(WaitReason::CompleteCopy));
        }
        commands.push(Command::LookAgain);
        commands
    }

    fn fenced(&mut self, now: Instant, node: NodeId, answer: Option<Witness>) -> Vec<Command> {
        let Stage::Fencing { asked } = &mut self.stage else {
            return Vec::new();
        };
        let Some(witness) = answer else {
            // The next look asks again.
            asked.remove(&node);
            return Vec::new();
        };
        self.witnesses.insert(node, witness);
        let covered = self.is_covered();
        let missing = self.missing();
        if covered && (missing.is_empty() || now >= self.give_up) {
            return self.settle();
        }
        Vec::new()
    }

    /// Makes the complete copies of each slice identical.
    fn settle(&mut self) -> Vec<Command> {
        let mut commands = vec![Command::Wait(WaitReason::Reconcile)];
        let mut begins: BTreeMap<NodeId, Vec<StreamStart>> = BTreeMap::new();
        let mut settled = BTreeMap::new();
        let mut pending = 0;
        for slice in self.copies.keys().copied() {
            let copies: Vec<(NodeId, &CopyReport)> = self
                .witnesses
                .iter()
                .filter_map(|(node, witness)| Some((*node, witness.copies.get(&slice)?)))
                .filter(|(_, copy)| copy.complete)
                .collect();
            let union = Union::of(&copies);
            for (node, copy) in &copies {
                if copy.last < union.stable.0 {
                    reach::note(Row::ReconcileLeftOut);
                    continue;
                }
                self.last_session += 1;
                pending += 1;
                let session = self.last_session;
                let held = union.held_by(*node);
                if held == union.records.len() {
                    begins.entry(*node).or_default().push(StreamStart {
                        slice,
                        session,
                        next: union.last().next().0,
                    });
                    continue;
                }
                reach::note(Row::ReconcileFilled);
                commands.push(Command::Repair(Repair {
                    node: *node,
                    slice,
                    session,
                    keep_through: Seq(union.stable.0 + held as u64),
                    lacks: union.records[held..].to_vec(),
                }));
            }
            settled.insert(slice, union.settled(&copies));
        }
        for (node, starts) in begins {
            let parts = starts.chunks(STREAMS_AT_ONCE);
            commands.extend(parts.map(|part| Command::Begin(node, part.to_vec())));
        }
        self.stage = Stage::Settling { settled, pending };
        if pending == 0 {
            commands.extend(self.settled());
        }
        commands
    }

    /// Copies were set up, or were not: slice, node, number of the stream, and which.
    fn set_up(&mut self, parts: Vec<(u32, NodeId, u64, bool)>) -> Vec<Command> {
        let Stage::Settling { settled, pending } = &mut self.stage else {
            return Vec::new();
        };
        for (slice, node, session, done) in parts {
            *pending -= 1;
            let Some(settled) = settled.get_mut(&slice) else {
                continue;
            };
            if done {
                settled.sessions.insert(node, session);
            } else {
                reach::note(Row::ReconcileLeftOut);
            }
        }
        if *pending == 0 {
            return self.settled();
        }
        Vec::new()
    }

    fn settled(&mut self) -> Vec<Command> {
        let Stage::Settling { settled, .. } = std::mem::replace(&mut self.stage, Stage::Ended)
        else {
            return Vec::new();
        };
        if settled.values().any(|slice| slice.sessions.is_empty()) {
            reach::note(Row::ReconcileAgain);
            return vec![Command::Restart(WaitReason::CopyUnderRepair)];
        }
        let slices = settled.values();
        let incarnations = self.witnesses.iter();
        let reconciled = Reconciled {
            slices: slices
                .map(|slice| slice.sessions.keys().copied().collect())
                .collect(),
            incarnations: incarnations
                .map(|(node, witness)| (*node, witness.incarnation))
                .collect(),
        };
        if planted::is_active(Bug::ServeBeforeOpened) {
            let opening = self.opening(settled);
            return vec![Command::Open(opening), Command::Propose(reconciled)];
        }
        self.stage = Stage::Agreeing { settled };
        vec![
            Command::Wait(WaitReason::Opening),
            Command::Propose(reconciled),
        ]
    }

    fn agreed(&mut self, agreement: Agreement) -> Vec<Command> {
        let stage = std::mem::replace(&mut self.stage, Stage::Ended);
        match agreement {
            Agreement::Done => match stage {
                Stage::Agreeing { settled } => vec![Command::Open(self.opening(settled))],
                Stage::Fencing { .. } | Stage::Settling { .. } | Stage::Ended => Vec::new(),
            },
            Agreement::RestartedCopy => {
                reach::note(Row::OpenedAgain);
                vec![Command::Restart(WaitReason::RestartedCopy)]
            }
            Agreement::Over => {
                reach::note(Row::OpenedOver);
                vec![Command::Close]
            }
        }
    }

    fn opening(&self, slices: BTreeMap<u32, Settled>) -> Opening {
        let present = self.witnesses.iter();
        Opening {
            slices,
            present: present
                .map(|(node, witness)| (*node, (witness.incarnation, witness.free_bytes)))
                .collect(),
        }
    }
}

/// What the complete copies of a slice hold together.
struct Union {
    stable: Seq,
    records: Vec<UnionRecord>,
}

impl Union {
    fn of(copies: &[(NodeId, &CopyReport)]) -> Self {
        let known = copies.iter().map(|(_, copy)| copy.stable);
        let stable = Seq(known.max().unwrap_or(0));
        let mut records = union_of_tails(stable, copies);
        if planted::is_active(Bug::TakeStableOnly) {
            records.clear();
        }
        Self { stable, records }
    }

    fn last(&self) -> Seq {
        Seq(self.stable.0 + self.records.len() as u64)
    }

    /// So many of its first records are on this node.
    fn held_by(&self, node: NodeId) -> usize {
        let records = self.records.iter();
        records
            .take_while(|(_, nodes)| nodes.contains(&node))
            .count()
    }

    fn settled(&self, copies: &[(NodeId, &CopyReport)]) -> Settled {
        let last = self.last();
        let in_union = self.records.iter().map(|(header, _)| {
            let operation = OperationId {
                origin: header.origin,
                number: header.operation,
            };
            (operation, View(header.view), Seq(header.seq))
        });
        let mut operations: Vec<(OperationId, View, Seq)> = copies
            .iter()
            .flat_map(|(_, copy)| &copy.operations)
            .filter(|operation| operation.seq <= self.stable.0)
            .map(|o| {
                let operation = OperationId {
                    origin: o.origin,
                    number: o.operation,
                };
                (operation, View(o.view), Seq(o.seq))
            })
            .chain(in_union)
            .collect();
        operations.sort_by_key(|(operation, view, seq)| (*seq, *operation, *view));
        operations.dedup();
        // Each copy is complete, so what any of them remembers without a gap is remembered.
        let from = copies.iter().map(|(_, copy)| copy.remembered_from).min();
        let mut memory = Memory::new(Seq(from.unwrap_or(u64::MAX)), &operations);
        if planted::is_active(Bug::ForgetOperations) {
            operations.clear();
            memory = Memory::new(Seq(1), &[]);
        }
        let knows = copies.iter().filter(|(_, copy)| copy.stable == last.0);
        Settled {
            last,
            sessions: BTreeMap::new(),
            told: knows.map(|(node, _)| *node).collect(),
            operations,
            memory,
        }
    }
}
