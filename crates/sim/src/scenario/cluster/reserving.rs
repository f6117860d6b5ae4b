//! Hosts that share a volume as cluster software does: whoever takes over registers, preempts the
//! holder of the reservation, and is from then on the only one to write. It relies on this: what it
//! finds once its PREEMPT has been answered is all that will ever come of the other's writes,
//! wherever they are held up.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use holdfast_config::state::{Change, FrontChange, Outcome, VolumeSpec};
use holdfast_node::{AccessError, IoError, Node, Operation, VolumeReservations};
use holdfast_reservation::{Action, Nexus, Request, ReservationType, Standing};
use holdfast_runtime::NodeId;
use holdfast_scsi::reservation::Reservations as _;
use holdfast_wire::VolumeId;

use super::RIVALS_FROM;
use super::client::Workload;
use super::node::NoAnswer;
use super::sessions::{DEAD_AFTER_NS, Session};
use crate::oracle::content::{self, BLOCK_BYTES, BlockAddress, Value};
use crate::oracle::linearizability::{Checker, Ticket, Violation};
use crate::random::Random;
use crate::report::Failure;

const RIVALS: u64 = 2;
/// The blocks that they write.
const BLOCKS: u64 = 2;
const SIZE_BYTES: u64 = 1 << 20;
const NAME: &str = "shared";
const SETUP_LIMIT: Duration = Duration::from_secs(5);
const SETUP_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause of a host that has lost the reservation.
const REST: Duration = Duration::from_millis(400);
/// A change of reservations is waited for as long as initiators wait.
const TAKE_LIMIT: Duration = Duration::from_secs(60);
const LIMITS: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_secs(3),
    Duration::from_secs(30),
];
/// Attempts to read a block at the end of a run.
const ATTEMPTS: u32 = 40;

/// What was done in a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    pub(super) operations: u64,
    /// Reservations that another host held.
    pub(super) taken: u64,
    pub(super) refused: u64,
}

/// What the hosts share.
pub(super) struct Sharing {
    workload: Rc<Workload>,
    volume: Cell<Option<VolumeId>>,
    checker: RefCell<Checker>,
    next: Cell<u64>,
    /// Writes without an answer, by value, each with the registration that it was sent under.
    under_way: RefCell<BTreeMap<u64, (u64, Ticket)>>,
    /// Registrations of which a host was told that they are gone.
    removed: RefCell<BTreeSet<u64>>,
    /// What blocks were last seen to hold.
    known: RefCell<BTreeMap<u64, Value>>,
    figures: Cell<Figures>,
}

/// A host's session at a portal.
struct Place {
    rival: u64,
    node: NodeId,
    session: Rc<Session>,
    nexus: Nexus,
}

impl Sharing {
    pub(super) fn new(workload: Rc<Workload>) -> Rc<Self> {
        Rc::new(Self {
            workload,
            volume: Cell::new(None),
            checker: RefCell::default(),
            next: Cell::new(1),
            under_way: RefCell::default(),
            removed: RefCell::default(),
            known: RefCell::default(),
            figures: Cell::default(),
        })
    }

    /// Makes the volume and lets all hosts have their way until `stop`.
    pub(super) async fn play(self: Rc<Self>, stop: Rc<Cell<bool>>) {
        let Some(volume) = self.make_volume(&stop).await else {
            return;
        };
        self.volume.set(Some(volume));
        let rivals = (1..=RIVALS).map(|number| {
            let (sharing, stop) = (self.clone(), stop.clone());
            async move { sharing.live(RIVALS_FROM + number, volume, stop).await }
        });
        futures::future::join_all(rivals).await;
    }

    /// Reads everything back and gives the verdict.
    pub(super) async fn finish(&self) -> Result<Figures, Failure> {
        let simulation = &self.workload.nodes.simulation;
        let random = simulation.random("rivals at the end");
        if let Some(volume) = self.volume.get() {
            for block in 0..BLOCKS {
                let mut attempts = 0;
                while !self.read(&random, RIVALS_FROM, volume, block).await {
                    attempts += 1;
                    if attempts == ATTEMPTS {
                        let what = format!("block {block} of the shared volume cannot be read");
                        return Err(Failure::oracle("progress", what));
                    }
                    simulation.runtime().sleep(SETUP_PAUSE).await;
                }
            }
        }
        self.workload.verdict()?;
        let mut checker = self.checker.borrow_mut();
        let verdict = checker.finish();
        verdict.map_err(|violation| Failure::oracle("reservations", violation))?;
        Ok(Figures {
            operations: checker.operations(),
            ..self.figures.get()
        })
    }

    /// One host's life.
    async fn live(&self, rival: u64, volume: VolumeId, stop: Rc<Cell<bool>>) {
        let runtime = self.workload.nodes.simulation.runtime();
        let random = self
            .workload
            .nodes
            .simulation
            .random(&format!("rival {rival}"));
        let think = self.workload.nodes.shape.think;
        while !stop.get() {
            runtime.sleep(random.duration(Duration::ZERO, REST)).await;
            let Some(place) = self.log_in(&random, rival) else {
                continue;
            };
            if !self.take(&random, &place, volume).await {
                continue;
            }
            for block in 0..BLOCKS {
                self.read(&random, rival, volume, block).await;
            }
            for _ in 0..random.between(1, 40) {
                if stop.get() || !self.write(&random, &place, volume).await {
                    break;
                }
                runtime.sleep(random.duration(Duration::ZERO, think)).await;
                if random.chance(300_000) {
                    let block = random.below(BLOCKS);
                    self.read(&random, rival, volume, block).await;
                }
            }
        }
    }

    fn log_in(&self, random: &Random, rival: u64) -> Option<Place> {
        let nodes = &self.workload.nodes;
        let node = random.pick(&nodes.with_process()).copied()?;
        let session = self.workload.sessions.of(rival, node)?;
        let nexus = Nexus {
            initiator: format!("iqn.2026-11.test:rival-{rival}").into(),
            isid: [1; 6],
            target_port: u16::try_from(node.0).ok()?,
        };
        Some(Place {
            rival,
            node,
            session,
            nexus,
        })
    }

    /// Registers, and takes the reservation, away from its holder if there is one. False if that
    /// was refused, or nobody says what came of it.
    async fn take(&self, random: &Random, place: &Place, volume: VolumeId) -> bool {
        let simulation = &self.workload.nodes.simulation;
        let Some((_, node)) = self.workload.nodes.get(place.node) else {
            return false;
        };
        let weak = Rc::downgrade(&node);
        drop(node);
        let (nexus, key, abort) = (place.nexus.clone(), self.fresh(), random.chance(500_000));
        let asking = simulation.call(place.node, "rival", async move {
            take(weak.upgrade()?, volume, nexus, key, abort).await
        });
        let answer = simulation.runtime().timeout(TAKE_LIMIT, asking).await;
        let Some(Ok(Some(loser))) = answer else {
            return false;
        };
        if let Some(loser) = loser {
            let figures = self.figures.get();
            self.figures.set(Figures {
                taken: figures.taken + 1,
                ..figures
            });
            self.note_removed(loser);
        }
        true
    }

    /// A host was told that this registration is gone: what was sent under it has happened, or
    /// never will.
    fn note_removed(&self, number: u64) {
        let now_ns = self.workload.nodes.simulation.now_ns();
        self.removed.borrow_mut().insert(number);
        let all = std::mem::take(&mut *self.under_way.borrow_mut());
        for (value, (sent_under, ticket)) in all {
            if sent_under == number {
                self.judge(self.checker.borrow_mut().given_up(now_ns, ticket, now_ns));
            } else {
                self.under_way
                    .borrow_mut()
                    .insert(value, (sent_under, ticket));
            }
        }
    }

    /// Writes a block, or compares and writes it. False if the host is not to go on.
    async fn write(&self, random: &Random, place: &Place, volume: VolumeId) -> bool {
        let nodes = &self.workload.nodes;
        let simulation = &nodes.simulation;
        let Some(standing) = self.standing(place, volume) else {
            return false;
        };
        let number = standing.number;
        let was_removed = self.removed.borrow().contains(&number);
        let block = random.below(BLOCKS);
        let address = address_of(volume, block);
        let value = Value(self.fresh());
        let from = self.known.borrow().get(&block).copied();
        let from = from.filter(|_| random.chance(300_000));
        let mut data = BytesMut::new();
        if let Some(from) = from {
            data.extend_from_slice(&contents(address, from));
        }
        data.extend_from_slice(&contents(address, value));
        let (began_ns, data) = (simulation.now_ns(), data.freeze());
        let (ticket, operation) = {
            let mut checker = self.checker.borrow_mut();
            match from {
                Some(from) => (
                    checker.begin_swap(began_ns, place.rival, address, (from, value)),
                    Operation::CompareAndWrite(data),
                ),
                None => (
                    checker.begin_write(began_ns, place.rival, address, value),
                    Operation::Write(data),
                ),
            }
        };
        self.under_way
            .borrow_mut()
            .insert(value.0, (number, ticket));
        let limit = LIMITS[random.below(LIMITS.len() as u64) as usize];
        let at = (place.node, &*place.session);
        let range = (block * BLOCK_BYTES as u64, BLOCK_BYTES as u64);
        // Boxed: the layout of what waits for it would be too deep for the compiler.
        let answer = nodes
            .run_as(standing, at, volume, range, operation, limit)
            .boxed_local()
            .await;
        let is_open = matches!(
            answer,
            Err(NoAnswer::Open) | Ok(Err(AccessError::Io(IoError::Unknown | IoError::PathEnded)))
        );
        if is_open {
            self.workload
                .sessions
                .give_up(place.rival, place.node, &place.session);
        }
        let ended = self.under_way.borrow_mut().remove(&value.0);
        let Some((_, ticket)) = ended else {
            // Its registration was removed meanwhile, and the verdict is known.
            return false;
        };
        let now_ns = simulation.now_ns();
        let mut checker = self.checker.borrow_mut();
        let (verdict, goes_on) = match answer {
            Ok(Ok(_)) if was_removed => {
                let what = format!("a write under registration {number}, which is gone, was done");
                self.workload.object(Failure::oracle("reservations", what));
                (checker.acknowledged(now_ns, ticket), false)
            }
            Ok(Ok(_)) => {
                self.known.borrow_mut().insert(block, value);
                (checker.acknowledged(now_ns, ticket), true)
            }
            Ok(Err(AccessError::Io(IoError::Miscompare(_)))) => {
                self.known.borrow_mut().remove(&block);
                (checker.differed(now_ns, ticket), true)
            }
            _ if is_open && !was_removed => {
                let dead_ns = now_ns + DEAD_AFTER_NS;
                (checker.given_up(now_ns, ticket, dead_ns), false)
            }
            Ok(Err(AccessError::Reserved)) => {
                let figures = self.figures.get();
                self.figures.set(Figures {
                    refused: figures.refused + 1,
                    ..figures
                });
                (checker.failed(now_ns, ticket), false)
            }
            Ok(Err(AccessError::Io(_))) | Err(NoAnswer::NotThere | NoAnswer::Open) => {
                (checker.failed(now_ns, ticket), false)
            }
        };
        drop(checker);
        self.judge(verdict);
        goes_on
    }

    /// What the host is to the table as its portal knows it, if it is anything.
    fn standing(&self, place: &Place, volume: VolumeId) -> Option<Standing> {
        let (_, node) = self.workload.nodes.get(place.node)?;
        let standing = node.state().reservations(volume).standing(&place.nexus);
        (standing.number > 0).then_some(standing)
    }

    /// Reads a block through any portal, as everybody may. False if there is no answer.
    async fn read(&self, random: &Random, reader: u64, volume: VolumeId, block: u64) -> bool {
        let nodes = &self.workload.nodes;
        let simulation = &nodes.simulation;
        let Some(node) = random.pick(&nodes.with_process()).copied() else {
            return false;
        };
        let Some(session) = self.workload.sessions.of(reader, node) else {
            return false;
        };
        let address = address_of(volume, block);
        let began_ns = simulation.now_ns();
        let ticket = self
            .checker
            .borrow_mut()
            .begin_read(began_ns, reader, address);
        let range = (block * BLOCK_BYTES as u64, BLOCK_BYTES as u64);
        let answer = nodes
            .run((node, &*session), volume, range, Operation::Read, LIMITS[1])
            .boxed_local()
            .await;
        let now_ns = simulation.now_ns();
        let mut checker = self.checker.borrow_mut();
        let verdict = match answer {
            Ok(Ok(data)) => match content::decode(&data, address) {
                Ok(value) => {
                    self.known.borrow_mut().insert(block, value);
                    checker.returned(now_ns, ticket, value)
                }
                Err(garbage) => {
                    let what = format!("block {block} of the shared volume reads as {garbage}");
                    self.workload.object(Failure::oracle("contents", what));
                    checker.failed(now_ns, ticket)
                }
            },
            Ok(Err(_)) | Err(_) => {
                let verdict = checker.failed(now_ns, ticket);
                drop(checker);
                self.judge(verdict);
                return false;
            }
        };
        drop(checker);
        self.judge(verdict);
        true
    }

    fn judge(&self, verdict: Result<(), Violation>) {
        if let Err(violation) = verdict {
            self.workload
                .object(Failure::oracle("reservations", violation));
        }
    }

    /// A number that was never used in this run.
    fn fresh(&self) -> u64 {
        let fresh = self.next.get();
        self.next.set(fresh + 1);
        fresh
    }

    /// `None` if the run ends before there is one.
    async fn make_volume(&self, stop: &Cell<bool>) -> Option<VolumeId> {
        let nodes = &self.workload.nodes;
        let simulation = &nodes.simulation;
        let random = simulation.random("rivals' volume");
        while !stop.get() {
            let spec = VolumeSpec {
                name: NAME.to_owned(),
                size_bytes: SIZE_BYTES,
                logical_block_bytes: 4096,
                copies: nodes.shape.copies.min(nodes.shape.nodes.len() as u32),
                slice_bytes: SIZE_BYTES,
                chap: None,
                naa_random: 2_000,
                now_unix_ms: 0,
            };
            if let Some((id, node)) = random
                .pick(&nodes.with_process())
                .and_then(|id| Some((*id, nodes.get(*id)?.1)))
            {
                let weak = Rc::downgrade(&node);
                drop(node);
                let call = simulation.call(id, "rivals", async move {
                    let node = weak.upgrade()?;
                    let change = Change::CreateThinVolume {
                        spec,
                        front: FrontChange::default(),
                    };
                    if let Ok(Outcome::Created(volume)) = node.propose(change, SETUP_LIMIT).await {
                        return Some(volume);
                    }
                    // An earlier try may have made it.
                    node.state().volume_by_name(NAME).map(|(volume, _)| volume)
                });
                let made = simulation.runtime().timeout(SETUP_LIMIT * 2, call).await;
                if let Some(Ok(Some(volume))) = made {
                    return Some(volume);
                }
            }
            simulation.runtime().sleep(SETUP_PAUSE).await;
        }
        None
    }
}

/// The requests of a host that takes over. Answers the number of the registration that it removed,
/// if it removed one; `None` if it does not hold the reservation for certain.
async fn take(
    node: Rc<Node>,
    volume: VolumeId,
    nexus: Nexus,
    key: u64,
    abort: bool,
) -> Option<Option<u64>> {
    let reservations = VolumeReservations::new(node, volume);
    let kind = ReservationType::WriteExclusive;
    let ask = |key, action| {
        let nexus = nexus.clone();
        reservations.apply(Request { nexus, key, action })
    };
    let register = Action::Register {
        new_key: key,
        check_key: false,
        persist: true,
    };
    ask(0, register).await.ok()?;
    let table = reservations.table();
    let mut registrations = table.registrations();
    let holder = registrations.find(|(nexus, _)| table.is_holder(nexus));
    let Some((holder, victim_key)) = holder else {
        ask(key, Action::Reserve(kind)).await.ok()?;
        return Some(None);
    };
    if *holder == nexus {
        return Some(None);
    }
    let loser = table.standing(holder).number;
    let preempt = Action::Preempt {
        victim_key,
        kind,
        abort,
    };
    ask(key, preempt).await.ok()?;
    Some(Some(loser))
}

fn contents(address: BlockAddress, value: Value) -> Bytes {
    let mut block = BytesMut::zeroed(BLOCK_BYTES);
    content::fill(&mut block, address, value);
    block.freeze()
}

fn address_of(volume: VolumeId, block: u64) -> BlockAddress {
    BlockAddress {
        volume: volume.0,
        block,
    }
}
