//! Clients: they read, write and zero through any node's portal, and report to the checker.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use holdfast_node::{IoError, Operation};
use holdfast_runtime::NodeId;
use holdfast_wire::VolumeId;

use super::node::{Answer, NoAnswer, Nodes};
use super::sessions::{DEAD_AFTER_NS, Session, Sessions};
use super::shape::{REGION_UNITS, Region};
use crate::faults::FaultClass;
use crate::oracle::content::{self, BLOCK_BYTES, BlockAddress, Value};
use crate::oracle::linearizability::{Checker, Ticket, Violation};
use crate::random::Random;
use crate::report::Failure;
use crate::trace::Step;

/// What all clients share.
pub(super) struct Workload {
    pub(super) nodes: Rc<Nodes>,
    pub(super) sessions: Sessions,
    pub(super) volumes: Vec<VolumeId>,
    pub(super) checker: RefCell<Checker>,
    pub(super) objection: RefCell<Option<Failure>>,
    next_value: Cell<u64>,
    /// What blocks were last seen to hold.
    known: RefCell<BTreeMap<BlockAddress, Value>>,
    pub(super) counts: Counts,
    /// Draws who ends a path in good order, once [`Workload::allow_resets`] was called.
    resets: Random,
    resets_ppm: Cell<u32>,
    /// Nodes whose drain somebody has called off, or tried to.
    pub(super) called_off: RefCell<BTreeSet<NodeId>>,
    /// Where clients meet, volume by volume.
    regions: RefCell<Vec<Vec<Region>>>,
}

/// How operations ended.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) reads: Cell<u64>,
    pub(super) writes: Cell<u64>,
    pub(super) unknown: Cell<u64>,
    pub(super) failed: Cell<u64>,
    pub(super) damaged: Cell<u64>,
    pub(super) grown: Cell<u64>,
    pub(super) evicted: Cell<u64>,
    pub(super) drained: Cell<u64>,
    /// Copies that began to move.
    pub(super) relocated: Cell<u64>,
    pub(super) removed: Cell<u64>,
    pub(super) moved: Cell<u64>,
    pub(super) deleted: Cell<u64>,
    pub(super) swapped: Cell<u64>,
    pub(super) not_swapped: Cell<u64>,
    pub(super) long_writes: Cell<u64>,
}

/// A range of units (blocks, or sectors) of one volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    /// Index into the volumes.
    pub(super) volume: usize,
    pub(super) first: u64,
    pub(super) units: u64,
    pub(super) unit_bytes: u64,
}

impl Range {
    /// All of a region.
    pub(super) fn whole(volume: usize, region: Region) -> Self {
        let Region { first, unit_bytes } = region;
        Self {
            volume,
            first,
            units: REGION_UNITS,
            unit_bytes,
        }
    }

    /// A part of this range.
    pub(super) fn part(self, skipped: u64, units: u64) -> Self {
        assert!(
            skipped + units <= self.units,
            "{units} units after {skipped} are no part"
        );
        Self {
            first: self.first + skipped,
            units,
            ..self
        }
    }

    /// Offset and length in bytes.
    fn bytes(self) -> (u64, u64) {
        (self.first * self.unit_bytes, self.units * self.unit_bytes)
    }
}

/// How an operation ended, for those who wait for service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Served,
    /// An honest error because of damage at rest.
    Damaged,
    NotServed,
}

/// Sectors appear to the checker as blocks from this number on.
const SECTORS_FROM: u64 = 1 << 40;

/// Units of a region that the writes of an epoch meet on, and how long an epoch is.
const FOCUS_UNITS: u64 = 4;
const FOCUS_EPOCH_NS: u64 = 1_500_000_000;

/// How often a client ends its path with a change under way, and waits for the answer.
const RESETS_PPM: u32 = 50_000;

/// What is longer may run in pieces.
const PIECE_BYTES: u64 = 1 << 20;

/// An initiator's own limit: some give up before the portal does.
const LIMITS: [Duration; 3] = [
    Duration::from_secs(3),
    Duration::from_secs(10),
    Duration::from_secs(40),
];

impl Workload {
    pub(super) fn new(nodes: Rc<Nodes>, volumes: Vec<VolumeId>) -> Rc<Self> {
        let regions = nodes.shape.volumes.iter();
        let regions = regions.map(|volume| volume.regions.clone()).collect();
        Rc::new(Self {
            regions: RefCell::new(regions),
            sessions: Sessions::new(nodes.clone()),
            resets: nodes.simulation.random("resets"),
            resets_ppm: Cell::new(0),
            nodes,
            volumes,
            checker: RefCell::default(),
            objection: RefCell::default(),
            next_value: Cell::new(1),
            known: RefCell::default(),
            counts: Counts::default(),
            called_off: RefCell::default(),
        })
    }

    /// The regions of a volume as it is now.
    pub(super) fn regions(&self, volume: usize) -> Vec<Region> {
        self.regions.borrow()[volume].clone()
    }

    /// A volume has grown: clients meet in the new range too, which nobody has written yet.
    pub(super) fn note_grown(&self, volume: usize) {
        let growth = self.nodes.shape.volumes[volume].growth.as_ref();
        let added = growth.into_iter().flat_map(|growth| &growth.regions);
        self.regions.borrow_mut()[volume].extend(added);
        self.counts.grown.set(self.counts.grown.get() + 1);
        self.say(0, || format!("volume {volume} has grown"));
    }

    /// A node was evicted.
    pub(super) fn note_evicted(&self) {
        self.counts.evicted.set(self.counts.evicted.get() + 1);
        self.say(0, || "a node was evicted".to_owned());
    }

    /// One client's life until `stop`.
    pub(super) async fn client(self: Rc<Self>, client: u64, stop: Rc<Cell<bool>>) {
        let simulation = self.nodes.simulation.clone();
        let random = simulation.random(&format!("client {client}"));
        let think = self.nodes.shape.think;
        // Most initiators stay with one portal for a while.
        let mut portal = None;
        while !stop.get() && self.objection.borrow().is_none() {
            simulation
                .runtime()
                .sleep(random.duration(Duration::ZERO, think))
                .await;
            if portal.is_none() || random.chance(100_000) {
                portal = random.pick(&self.nodes.with_process()).copied();
            }
            let Some(node) = portal else { continue };
            let limit = LIMITS[random.below(LIMITS.len() as u64) as usize];
            let ended = match random.below(20) {
                0..9 => {
                    let range = self.draw_range(&random);
                    self.read(client, node, range, limit).await
                }
                9 | 10 => {
                    let range = self.draw_focused(&random).part(0, 1);
                    self.compare_and_write(client, node, range, limit).await
                }
                kind => {
                    let range = match self.draw_long(&random) {
                        Some(range) => range,
                        None => self.draw_focused(&random),
                    };
                    self.write(client, node, range, limit, kind == 19).await
                }
            };
            if ended != Ended::Served {
                portal = None;
            }
        }
    }

    fn draw_range(&self, random: &Random) -> Range {
        let volume = random.below(self.volumes.len() as u64) as usize;
        let regions = self.regions(volume);
        let region = random
            .pick(&regions)
            .copied()
            .expect("a volume has regions");
        // Half of all operations meet on the first few blocks.
        let hot = random.chance(500_000);
        let skipped = random.below(if hot { 3 } else { REGION_UNITS });
        let most = (REGION_UNITS - skipped).min([1, 2, 8, 16][random.below(4) as usize]);
        Range::whole(volume, region).part(skipped, random.between(1, most))
    }

    /// Now and then, in some runs, blocks all over a volume, more than an owner takes at once too.
    fn draw_long(&self, random: &Random) -> Option<Range> {
        if !self.nodes.shape.long_writes || !random.chance(30_000) {
            return None;
        }
        let volume = random.below(self.volumes.len() as u64) as usize;
        let shape = &self.nodes.shape.volumes[volume];
        let blocks = shape.size_bytes / BLOCK_BYTES as u64;
        let first = random.below(blocks);
        let longest = [40, 260, 400][random.below(3) as usize];
        let end = blocks.min(first + random.between(1, longest));
        let end = (first..end)
            .find(|block| shape.in_sectors(*block))
            .unwrap_or(end);
        self.counts
            .long_writes
            .set(self.counts.long_writes.get() + 1);
        (end > first).then_some(Range {
            volume,
            first,
            units: end - first,
            unit_bytes: BLOCK_BYTES as u64,
        })
    }

    /// Most writes of an epoch meet on a few blocks; what the epochs before wrote comes to rest
    /// there, and is all that tells whether it was kept.
    fn draw_focused(&self, random: &Random) -> Range {
        if random.chance(100_000) {
            return self.draw_range(random);
        }
        self.focused(random)
    }

    /// Some of the few blocks that everybody meets on at the moment.
    pub(super) fn focused(&self, random: &Random) -> Range {
        let simulation = &self.nodes.simulation;
        let epoch = simulation.now_ns() / FOCUS_EPOCH_NS;
        let common = simulation.random(&format!("focus {epoch}"));
        let volume = common.below(self.volumes.len() as u64) as usize;
        let regions = self.regions(volume);
        let region = common
            .pick(&regions)
            .copied()
            .expect("a volume has regions");
        let skipped = common.below(REGION_UNITS / FOCUS_UNITS) * FOCUS_UNITS;
        let within = random.below(FOCUS_UNITS);
        let units = random.between(1, FOCUS_UNITS - within);
        Range::whole(volume, region).part(skipped + within, units)
    }

    /// Reads a range and has every block judged.
    pub(super) async fn read(
        &self,
        client: u64,
        node: NodeId,
        range: Range,
        limit: Duration,
    ) -> Ended {
        let simulation = &self.nodes.simulation;
        let begin_ns = simulation.now_ns();
        let tickets: Vec<Ticket> = self
            .addresses(range)
            .map(|address| {
                self.checker
                    .borrow_mut()
                    .begin_read(begin_ns, client, address)
            })
            .collect();
        self.say(client, || {
            format!("client {client} reads {range:?} through node {node}")
        });
        let reading = Operation::Read;
        let (_, answer) = self.through(client, node, range, reading, limit).await;
        self.say(client, || {
            let words = answer
                .as_ref()
                .map(|answer| answer.as_ref().map(Bytes::len));
            format!("client {client} reads {range:?}: {words:?}")
        });
        let now_ns = simulation.now_ns();
        let failed = |tickets: Vec<Ticket>, ended| {
            for ticket in tickets {
                self.judge(self.checker.borrow_mut().failed(now_ns, ticket));
            }
            self.counts.failed.set(self.counts.failed.get() + 1);
            ended
        };
        let data = match answer {
            Ok(Ok(data)) => data,
            Ok(Err(error)) => return failed(tickets, self.ended_by(error)),
            Err(NoAnswer::NotThere | NoAnswer::Open) => return failed(tickets, Ended::NotServed),
        };
        if data.len() as u64 != range.bytes().1 {
            let what = format!("a read of {range:?} returned {} bytes", data.len());
            self.object(Failure::oracle("length", what));
            return Ended::Served;
        }
        for ((block, address), ticket) in data
            .chunks_exact(range.unit_bytes as usize)
            .zip(self.addresses(range))
            .zip(tickets)
        {
            match content::decode(block, address) {
                Ok(value) => {
                    self.known.borrow_mut().insert(address, value);
                    self.judge(self.checker.borrow_mut().returned(now_ns, ticket, value));
                }
                Err(garbage) => {
                    let (number, volume) = (address.block, address.volume);
                    let what = format!("block {number} of volume {volume} reads as {garbage}");
                    self.object(Failure::oracle("contents", what));
                    self.judge(self.checker.borrow_mut().failed(now_ns, ticket));
                }
            }
        }
        self.counts.reads.set(self.counts.reads.get() + 1);
        Ended::Served
    }

    /// Writes new values, or zeroes, to a range.
    pub(super) async fn write(
        &self,
        client: u64,
        node: NodeId,
        range: Range,
        limit: Duration,
        zero: bool,
    ) -> Ended {
        let simulation = &self.nodes.simulation;
        let begin_ns = simulation.now_ns();
        let mut data = BytesMut::zeroed(range.bytes().1 as usize);
        let mut tickets = Vec::with_capacity(range.units as usize);
        let first_value = self.next_value.get();
        for (address, block) in self
            .addresses(range)
            .zip(data.chunks_exact_mut(range.unit_bytes as usize))
        {
            let value = if zero {
                Value::ZERO
            } else {
                self.fresh_value()
            };
            content::fill(block, address, value);
            let mut checker = self.checker.borrow_mut();
            tickets.push(checker.begin_write(begin_ns, client, address, value));
        }
        let operation = if zero {
            Operation::Zero
        } else {
            Operation::Write(data.freeze())
        };
        self.say(client, || {
            let what = if zero {
                "zeroes".to_owned()
            } else {
                format!("{first_value}..")
            };
            format!("client {client} writes {what} to {range:?} through node {node}")
        });
        let (session, answer) = self.through(client, node, range, operation, limit).await;
        self.say(client, || {
            let words = answer.as_ref().map(|answer| answer.as_ref().map(|_| ()));
            format!("client {client} writes {first_value}.. to {range:?}: {words:?}")
        });
        let now_ns = simulation.now_ns();
        let mut checker = self.checker.borrow_mut();
        let mut counted = &self.counts.failed;
        let mut outcome: fn(&mut Checker, u64, Ticket) -> Result<(), Violation> = Checker::failed;
        let ended = match answer {
            Ok(Ok(_)) => {
                (counted, outcome) = (&self.counts.writes, Checker::acknowledged);
                Ended::Served
            }
            Ok(Err(IoError::PathEnded)) => {
                (counted, outcome) = (&self.counts.unknown, is_dead);
                Ended::NotServed
            }
            Ok(Err(IoError::Unknown)) | Err(NoAnswer::Open) => {
                (counted, outcome) = (&self.counts.unknown, dies_soon);
                if let Some(session) = &session {
                    self.sessions.give_up(client, node, session);
                }
                Ended::NotServed
            }
            Ok(Err(error)) => {
                if self.runs_in_pieces(range, zero) {
                    (counted, outcome) = (&self.counts.unknown, dies_soon);
                }
                self.ended_by(error)
            }
            Err(NoAnswer::NotThere) => Ended::NotServed,
        };
        counted.set(counted.get() + 1);
        for ticket in tickets {
            let verdict = outcome(&mut checker, now_ns, ticket);
            self.judge(verdict);
        }
        ended
    }

    /// Writes a new value to a block, or a sector, if it holds what it was last seen to hold.
    pub(super) async fn compare_and_write(
        &self,
        client: u64,
        node: NodeId,
        range: Range,
        limit: Duration,
    ) -> Ended {
        let Some(address) = self.addresses(range).next() else {
            return Ended::Served;
        };
        let from = self.known.borrow().get(&address).copied();
        let (from, to) = (from.unwrap_or(Value::ZERO), self.fresh_value());
        let mut data = BytesMut::zeroed(2 * range.unit_bytes as usize);
        let (compared, written) = data.split_at_mut(range.unit_bytes as usize);
        content::fill(compared, address, from);
        content::fill(written, address, to);
        let begin_ns = self.nodes.simulation.now_ns();
        let ticket = {
            let mut checker = self.checker.borrow_mut();
            checker.begin_swap(begin_ns, client, address, (from, to))
        };
        let operation = Operation::CompareAndWrite(data.freeze());
        let (session, answer) = self.through(client, node, range, operation, limit).await;
        let differs = matches!(answer, Ok(Err(IoError::Miscompare(_))));
        self.say(client, || {
            let words = answer.as_ref().map(|answer| answer.as_ref().map(|_| ()));
            format!(
                "client {client} writes {} if {} to {range:?}: {words:?}",
                to.0, from.0
            )
        });
        let ended = self.judge_swap((client, node), session.as_ref(), ticket, answer);
        if differs {
            return self.read(client, node, range, limit).await;
        }
        if ended == Ended::Served {
            self.known.borrow_mut().insert(address, to);
        }
        ended
    }

    /// Reports how a compare and write ended.
    fn judge_swap(
        &self,
        (client, node): (u64, NodeId),
        session: Option<&Rc<Session>>,
        ticket: Ticket,
        answer: Answer,
    ) -> Ended {
        let now_ns = self.nodes.simulation.now_ns();
        let mut checker = self.checker.borrow_mut();
        let mut count = &self.counts.failed;
        let (verdict, ended) = match answer {
            Ok(Ok(_)) => {
                count = &self.counts.swapped;
                (checker.acknowledged(now_ns, ticket), Ended::Served)
            }
            Ok(Err(IoError::Miscompare(_))) => {
                count = &self.counts.not_swapped;
                (checker.differed(now_ns, ticket), Ended::Served)
            }
            Ok(Err(IoError::PathEnded)) => {
                count = &self.counts.unknown;
                (is_dead(&mut checker, now_ns, ticket), Ended::NotServed)
            }
            Ok(Err(IoError::Unknown)) | Err(NoAnswer::Open) => {
                count = &self.counts.unknown;
                if let Some(session) = session {
                    self.sessions.give_up(client, node, session);
                }
                (dies_soon(&mut checker, now_ns, ticket), Ended::NotServed)
            }
            Ok(Err(error)) => (checker.failed(now_ns, ticket), self.ended_by(error)),
            Err(NoAnswer::NotThere) => (checker.failed(now_ns, ticket), Ended::NotServed),
        };
        count.set(count.get() + 1);
        drop(checker);
        self.judge(verdict);
        ended
    }

    /// From now on clients end paths in good order now and then.
    pub(super) fn allow_resets(&self) {
        self.resets_ppm.set(RESETS_PPM);
    }

    /// Runs an operation in the client's session at a node, if it has or gets one.
    async fn through(
        &self,
        client: u64,
        node: NodeId,
        range: Range,
        operation: Operation,
        limit: Duration,
    ) -> (Option<Rc<Session>>, Answer) {
        let session = self.sessions.of(client, node);
        let volume = self.volumes[range.volume];
        let answer = match &session {
            Some(session) => {
                if !matches!(operation, Operation::Read)
                    && self.resets.chance(self.resets_ppm.get())
                {
                    self.sessions.reset(client, node, session);
                }
                let place = (node, &**session);
                let running = self
                    .nodes
                    .run(place, volume, range.bytes(), operation, limit);
                // Boxed: the layout of what waits for it would be too deep for the compiler.
                running.boxed_local().await
            }
            None => Err(NoAnswer::NotThere),
        };
        (session, answer)
    }

    /// Whether a write may fail with a part of it done: zeroes of parts of blocks, long ones, what
    /// lies on both sides of a border between slices.
    fn runs_in_pieces(&self, range: Range, zero: bool) -> bool {
        let (offset, length) = range.bytes();
        let block = BLOCK_BYTES as u64;
        let slice = self.nodes.shape.volumes[range.volume].slice_bytes;
        let whole_blocks = offset.is_multiple_of(block) && length.is_multiple_of(block);
        let is_long = length > PIECE_BYTES;
        (zero && !whole_blocks) || is_long || offset / slice != (offset + length - 1) / slice
    }

    /// Keeps the first objection.
    pub(super) fn object(&self, failure: Failure) {
        let now_ns = self.nodes.simulation.now_ns();
        self.nodes
            .simulation
            .note(Step::Note, 0, now_ns, || format!("OBJECTION: {failure}"));
        self.objection.borrow_mut().get_or_insert(failure);
    }

    /// The objection so far, if any.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        match &*self.objection.borrow() {
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        }
    }

    fn judge(&self, verdict: Result<(), Violation>) {
        if let Err(violation) = verdict {
            self.object(Failure::oracle("linearizability", violation));
        }
    }

    /// An error that says that nothing was changed.
    fn ended_by(&self, error: IoError) -> Ended {
        match error {
            IoError::Busy
            | IoError::Unreachable
            | IoError::Unknown
            | IoError::PathEnded
            | IoError::Gone => Ended::NotServed,
            IoError::Damaged => {
                self.counts.damaged.set(self.counts.damaged.get() + 1);
                let failed_reads = self.nodes.simulation.faults().get(FaultClass::DiskError);
                if !self.damage_was_done() && failed_reads == 0 {
                    self.object(Failure::oracle(
                        "honesty",
                        "damage is claimed, none was done",
                    ));
                }
                Ended::Damaged
            }
            IoError::Full | IoError::Invalid | IoError::Miscompare(_) => {
                self.object(Failure::oracle(
                    "honesty",
                    format!("unexpected error: {error}"),
                ));
                Ended::NotServed
            }
        }
    }

    /// Whether anything at rest was damaged so far.
    pub(super) fn damage_was_done(&self) -> bool {
        let counts = self.nodes.simulation.faults();
        [
            FaultClass::Corruption,
            FaultClass::UnreadablePage,
            FaultClass::MisplacedWrite,
            FaultClass::StaleRead,
            FaultClass::LyingSync,
        ]
        .into_iter()
        .any(|class| counts.get(class) > 0)
    }

    fn fresh_value(&self) -> Value {
        let value = self.next_value.get();
        self.next_value.set(value + 1);
        Value(value)
    }

    /// The registers of a range. Sectors are numbered apart from blocks.
    fn addresses(&self, range: Range) -> impl Iterator<Item = BlockAddress> + use<> {
        let volume = self.volumes[range.volume].0;
        let sectors = if range.unit_bytes == BLOCK_BYTES as u64 {
            0
        } else {
            SECTORS_FROM
        };
        (range.first..range.first + range.units).map(move |unit| BlockAddress {
            volume,
            block: sectors + unit,
        })
    }

    fn say(&self, client: u64, words: impl FnOnce() -> String) {
        let detail = self.next_value.get();
        self.nodes
            .simulation
            .note(Step::Operation, client, detail, words);
    }
}

/// The portal has said that the write took effect before, or never will.
fn is_dead(checker: &mut Checker, now_ns: u64, ticket: Ticket) -> Result<(), Violation> {
    checker.given_up(now_ns, ticket, now_ns)
}

/// The client gives the path up at this moment.
fn dies_soon(checker: &mut Checker, now_ns: u64, ticket: Ticket) -> Result<(), Violation> {
    checker.given_up(now_ns, ticket, now_ns + DEAD_AFTER_NS)
}
