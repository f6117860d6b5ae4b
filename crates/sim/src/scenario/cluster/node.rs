//! The nodes of the cluster: how they are founded, started and reached.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use holdfast_config::group::GroupOptions;
use holdfast_config::state::{
    Admission, Change, ClusterIdentity, FrontChange, Outcome, VolumeSpec,
};
use holdfast_node::{AccessError, IoError, Node, NodeIdentity, NodeOptions, Operation};
use holdfast_path::Requester;
use holdfast_reservation::Standing;
use holdfast_runtime::rpc::Service;
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::VolumeId;

use super::sessions::Session;
use super::shape::Shape;
use super::{birth, spread};
use crate::report::Failure;
use crate::simulation::{Machine, ProcessGone, Simulation};
use crate::trace::{Step, digest};

const CLUSTER: [u8; 16] = *b"simulated-holdfa";
const SETUP_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of each half of the config log: small, so that runs meet its turnover.
const HALF_BYTES: u64 = 256 << 10;

/// The nodes of one run.
pub(super) struct Nodes {
    pub(super) simulation: Simulation,
    pub(super) shape: Shape,
    members: BTreeMap<NodeId, Member>,
    pub(super) starts_refused: Cell<u64>,
    /// Where nodes are that have moved.
    moved: RefCell<BTreeMap<NodeId, String>>,
    /// The nodes whose machine is lost for good, or that were taken out.
    doomed: RefCell<BTreeSet<NodeId>>,
}

#[derive(Default)]
struct Member {
    /// Whether a start of the node has succeeded: from then on its config log must exist.
    settled: Cell<bool>,
    running: RefCell<Option<(Incarnation, Weak<Node>)>>,
}

/// What a node's portal answered, if it did.
pub(super) type Answer = Result<Result<Bytes, IoError>, NoAnswer>;

/// Why an operation through a node's portal has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The node does not run, or is still starting: nothing was done.
    NotThere,
    /// The node died on the way, or the caller's patience ended: anything may have been done.
    Open,
}

impl Nodes {
    pub(super) fn new(simulation: Simulation, shape: Shape) -> Rc<Self> {
        let members = shape
            .nodes
            .iter()
            .map(|node| (*node, Member::default()))
            .collect();
        for node in &shape.nodes {
            simulation.add_host(*node);
        }
        Rc::new(Self {
            simulation,
            shape,
            members,
            starts_refused: Cell::new(0),
            moved: RefCell::default(),
            doomed: RefCell::default(),
        })
    }

    /// Starts the node's process, if its machine still exists.
    pub(super) fn start(self: &Rc<Self>, node: NodeId) {
        if self.is_doomed(node) {
            return;
        }
        let nodes = self.clone();
        self.simulation
            .start(node, move |machine| nodes.live(node, machine));
    }

    async fn live(self: Rc<Self>, id: NodeId, machine: Machine) {
        let Machine {
            runtime,
            directory,
            links,
        } = machine;
        let incarnation = links.local_incarnation();
        let started = Node::start(runtime, directory, links, self.options(id)).await;
        match started {
            Err(error) => {
                self.starts_refused.set(self.starts_refused.get() + 1);
                self.say(id, || format!("does not start: {error}"));
            }
            Ok(node) => {
                // As the host notes it in the node's identity.
                self.members[&id].settled.set(true);
                let running = Some((incarnation, Rc::downgrade(&node)));
                *self.members[&id].running.borrow_mut() = running;
                let _memory = FreeAtEnd(node.clone());
                let mut failure = node.failure();
                let reason = failure
                    .wait_for(Option::is_some)
                    .await
                    .map(|reason| reason.clone());
                self.say(id, || format!("gives up: {reason:?}"));
            }
        }
    }

    fn options(&self, id: NodeId) -> NodeOptions {
        let others = self.shape.nodes.iter().filter(|node| **node != id);
        NodeOptions {
            identity: NodeIdentity {
                cluster: CLUSTER,
                uuid: uuid(id),
            },
            link_address: match self.moved.borrow().get(&id) {
                Some(moved) => moved.clone(),
                None => address(id),
            },
            api_address: String::new(),
            portal_address: String::new(),
            version: "simulated".to_owned(),
            seeds: match id {
                NodeId(1) => Vec::new(),
                _ => others.map(|node| (*node, address(*node))).collect(),
            },
            journal_bytes: self.shape.journal_bytes,
            home_bytes: self.shape.home_bytes,
            home_preallocated: self.shape.home_preallocated,
            scrub: self.shape.scrub,
            group: GroupOptions {
                may_create: !self.members[&id].settled.get(),
                half_bytes: HALF_BYTES,
                snapshot_after: self.shape.bounds.snapshot_after,
                ..GroupOptions::default()
            },
            fullness: Default::default(),
            balance: self.shape.balance,
            gossip: self.shape.gossip.clone(),
            store_bounds: self.shape.bounds.store,
            volume_bounds: self.shape.bounds.volume,
        }
    }

    /// The node object of the present process, once it has started.
    pub(super) fn get(&self, id: NodeId) -> Option<(Incarnation, Rc<Node>)> {
        let present = self.simulation.incarnation(id)?;
        let running = self.members[&id].running.borrow();
        let (incarnation, node) = running.as_ref()?;
        (*incarnation == present)
            .then(|| node.upgrade())
            .flatten()
            .map(|node| (present, node))
    }

    /// From its next start on this node is to be found elsewhere.
    pub(super) fn readdress(&self, node: NodeId, address: String) {
        self.moved.borrow_mut().insert(node, address);
    }

    /// From now on nobody starts this node.
    pub(super) fn doom(&self, node: NodeId) {
        self.doomed.borrow_mut().insert(node);
    }

    /// It is started again after all.
    pub(super) fn spare(&self, node: NodeId) {
        self.doomed.borrow_mut().remove(&node);
    }

    pub(super) fn is_doomed(&self, node: NodeId) -> bool {
        self.doomed.borrow().contains(&node)
    }

    /// Nodes whose process runs, started or not.
    pub(super) fn with_process(&self) -> Vec<NodeId> {
        let mut nodes = self.shape.nodes.clone();
        nodes.retain(|node| self.simulation.incarnation(*node).is_some());
        nodes
    }

    /// Nodes that serve as owner of some volume.
    pub(super) fn owners(&self) -> Vec<NodeId> {
        let mut nodes = self.shape.nodes.clone();
        nodes.retain(|id| {
            self.get(*id)
                .is_some_and(|(_, node)| node.report().serving > 0)
        });
        nodes
    }

    /// Runs an operation through the portal of a node, as an initiator does.
    pub(super) async fn run(
        &self,
        place: (NodeId, &Session),
        volume: VolumeId,
        range: (u64, u64),
        operation: Operation,
        limit: Duration,
    ) -> Answer {
        let nobody = Standing::default();
        let answer = self
            .run_as(nobody, place, volume, range, operation, limit)
            .await?;
        Ok(answer.map_err(|error| match error {
            AccessError::Io(error) => error,
            AccessError::Reserved => unreachable!("nobody reserves these volumes"),
        }))
    }

    /// The same for an initiator that is something to the volume's reservations.
    pub(super) async fn run_as(
        &self,
        standing: Standing,
        (id, session): (NodeId, &Session),
        volume: VolumeId,
        (offset, length): (u64, u64),
        operation: Operation,
        limit: Duration,
    ) -> Result<Result<Bytes, AccessError>, NoAnswer> {
        let (incarnation, node) = self.get(id).ok_or(NoAnswer::NotThere)?;
        if incarnation != session.incarnation {
            return Err(NoAnswer::NotThere);
        }
        let weak = Rc::downgrade(&node);
        drop(node);
        let requester = Requester {
            standing,
            path: session.path.clone(),
        };
        let call = self.simulation.call(id, "client", async move {
            // Upgraded inside the process: what it holds dies with it.
            match weak.upgrade() {
                Some(node) => {
                    let running = node.run_as(&requester, volume, offset, length, operation);
                    Some(running.await)
                }
                None => None,
            }
        });
        match self.simulation.runtime().timeout(limit, call).await {
            Some(Ok(Some(answer))) => Ok(answer),
            Some(Ok(None)) => Err(NoAnswer::NotThere),
            Some(Err(ProcessGone(_))) | None => Err(NoAnswer::Open),
        }
    }

    /// Has one node propose a change, as an operator does who has some patience; `None` if nobody
    /// knows what came of it.
    pub(super) async fn ask(
        &self,
        id: NodeId,
        operator: &'static str,
        change: Change,
        limit: Duration,
    ) -> Option<Outcome> {
        let (_, node) = self.get(id)?;
        let weak = Rc::downgrade(&node);
        drop(node);
        let call = self.simulation.call(id, operator, async move {
            weak.upgrade()?.propose(change, limit).await.ok()
        });
        let answer = self.simulation.runtime().timeout(limit * 2, call).await;
        answer?.ok().flatten()
    }

    /// Founds the cluster, lets every node join, and creates the volumes.
    pub(super) async fn found(self: &Rc<Self>) -> Result<Vec<VolumeId>, Failure> {
        let first = NodeId(1);
        self.start(first);
        let founder = self.clone();
        self.until("the first node starts", || founder.get(first).is_some())
            .await?;
        let (_, node) = self
            .get(first)
            .ok_or_else(|| setup("the first node is gone"))?;
        let identity = ClusterIdentity {
            id: CLUSTER,
            name: "simulated".to_owned(),
            authority: Vec::new(),
        };
        let founding = node.clone();
        self.call(
            first,
            async move { founding.found(identity, SETUP_LIMIT).await },
        )
        .await?
        .map_err(|error| setup(&format!("founding failed: {error}")))?;
        for id in self.shape.nodes.iter().filter(|id| **id != first) {
            let secret_hash = [id.0 as u8; 32];
            let token = Change::AddToken {
                secret_hash,
                expires_unix_ms: u64::MAX,
            };
            self.propose(&node, token).await?;
            let now_unix_ms = 0;
            let (uuid, link_address) = (uuid(*id), address(*id));
            let admission = Admission {
                secret_hash,
                uuid,
                link_address,
                now_unix_ms,
            };
            match self.propose(&node, Change::Admit(admission)).await? {
                Outcome::Admitted(number) if number == *id => {}
                outcome => return Err(setup(&format!("admission of node {id}: {outcome:?}"))),
            }
            birth::join(self, *id, first).await?;
        }
        let nodes = self.clone();
        self.until("every node is registered", || nodes.all_registered())
            .await?;
        let mut volumes = Vec::new();
        for (number, volume) in self.shape.volumes.iter().enumerate() {
            let spec = VolumeSpec {
                name: format!("volume-{number}"),
                size_bytes: volume.size_bytes,
                logical_block_bytes: 4096,
                copies: self.shape.copies.min(self.shape.nodes.len() as u32),
                slice_bytes: volume.slice_bytes,
                chap: None,
                naa_random: number as u64,
                now_unix_ms: 0,
            };
            match self
                .propose(
                    &node,
                    Change::CreateThinVolume {
                        spec,
                        front: FrontChange::default(),
                    },
                )
                .await?
            {
                Outcome::Created(volume) => volumes.push(volume),
                outcome => return Err(setup(&format!("creating a volume: {outcome:?}"))),
            }
        }
        for change in spread::changes(self) {
            match self.propose(&node, change).await? {
                Outcome::Created(_) | Outcome::Done => {}
                outcome => return Err(setup(&format!("a volume to be owned: {outcome:?}"))),
            }
        }
        if self.starts_refused.get() > 0 {
            return Err(setup(
                "a node that was ended while it joined did not start again",
            ));
        }
        Ok(volumes)
    }

    /// Whether every node's present process counts as running for the config group.
    pub(super) fn all_registered(&self) -> bool {
        self.shape.nodes.iter().all(|id| self.is_registered(*id))
    }

    pub(super) fn is_registered(&self, id: NodeId) -> bool {
        self.get(id).is_some_and(|(_, node)| node.is_registered())
    }

    pub(super) fn say(&self, id: NodeId, words: impl FnOnce() -> String) {
        let words = words();
        let detail = digest(words.as_bytes());
        self.simulation
            .note(Step::Note, id.0, detail, || format!("node {id} {words}"));
    }

    /// Waits for a condition, looking every 10 ms of virtual time.
    pub(super) async fn until(
        &self,
        what: &str,
        condition: impl Fn() -> bool,
    ) -> Result<(), Failure> {
        let runtime = self.simulation.runtime();
        let deadline = runtime.now() + SETUP_LIMIT;
        while !condition() {
            if runtime.now() >= deadline {
                return Err(setup(&format!("waited in vain until {what}")));
            }
            runtime.sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn propose(&self, node: &Rc<Node>, change: Change) -> Result<Outcome, Failure> {
        let proposing = node.clone();
        self.call(node.id(), async move {
            proposing.propose(change, SETUP_LIMIT).await
        })
        .await?
        .map_err(|error| setup(&error.to_string()))
    }

    async fn call<T: 'static>(
        &self,
        id: NodeId,
        future: impl Future<Output = T> + 'static,
    ) -> Result<T, Failure> {
        let call = self.simulation.call(id, "operator", future);
        call.await.map_err(|gone| setup(&gone.to_string()))
    }
}

/// An operating system frees a dead process' memory. Here its parts hold one another through
/// the handlers they gave each other; without those, all of them are dropped.
struct FreeAtEnd(Rc<Node>);

impl Drop for FreeAtEnd {
    fn drop(&mut self) {
        let context = self.0.context();
        for service in [
            Service::Raft,
            Service::Gossip,
            Service::Config,
            Service::Replica,
            Service::Volume,
            Service::Heal,
        ] {
            context
                .rpc
                .serve(service, |_| Box::pin(std::future::ready(None)));
            context.rpc.listen(service, |_| {});
        }
        context.holder.set_ack_handler(|_, _, _| {});
        context.holder.set_promise_handler(|_, _| {});
    }
}

pub(super) fn setup(what: &str) -> Failure {
    Failure::oracle("set-up without faults", what)
}

fn uuid(id: NodeId) -> [u8; 16] {
    let mut uuid = *b"node-directory--";
    uuid[8..].copy_from_slice(&id.0.to_le_bytes());
    uuid
}

fn address(id: NodeId) -> String {
    format!("node-{id}.simulated:7000")
}
