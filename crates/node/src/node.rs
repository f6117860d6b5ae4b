//! A running node.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_config::group::{ConfigGroup, GroupError, ProposeError};
use holdfast_config::state::{Change, ClusterIdentity, ClusterState, Outcome, Refusal};
use holdfast_gossip::{Gossip, Member};
use holdfast_path::Requester;
use holdfast_replica::Holder;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Directory, DiskError, Links, NodeId, Rpc, Runtime};
use holdfast_store::{RecoveryReport, Store, StoreError, StoreOptions};
use holdfast_volume::{
    AccessError, COPYING_MAX, Context, IoError, LeaseClerk, Operation, Owner, Portal, serve_healing,
};
use holdfast_wire::VolumeId;
use thiserror::Error;
use tokio::sync::{Semaphore, watch};

use crate::balance::Measures;
use crate::config::GroupConfig;
use crate::drain_meter::DrainMeter;
use crate::follow::is_deleted;
use crate::fullness::FullnessWatch;
use crate::heal::Healing;
use crate::isolation::Isolation;
use crate::moves::Moves;
use crate::options::NodeOptions;
use crate::scrub::{Scrub, ScrubOrder};
use crate::sweep::Sweep;
use crate::under_way::UnderWay;

/// Blocks of the largest slice: what the store checks block numbers against.
const SLICE_BLOCKS: u32 = (holdfast_config::state::SLICE_BYTES / 4096) as u32;

/// How long a node whose disk has failed tries to say so.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(1);

/// Why a node did not start.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The store cannot be used; nothing was changed.
    #[error("the store cannot be opened: {0}")]
    Store(#[from] StoreError),
    /// The config log cannot be used; nothing was changed.
    #[error("the config group cannot be started: {0}")]
    Group(#[from] GroupError),
    /// The cluster could not be founded.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The config group did not decide in time; the change may still take effect.
    #[error("the cluster did not decide: {0}")]
    Undecided(#[from] ProposeError),
}

/// Why a node that was running must stop. It has promised nothing that it cannot keep: its
/// copies are taken out of the in-sync sets by the others.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// The config group refuses this node.
    #[error("the cluster refuses this node: {0}")]
    Refused(Refusal),
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(String),
    /// The config log failed.
    #[error("the config log failed: {0}")]
    Group(String),
}

/// See the module's header.
pub struct Node {
    pub(crate) options: NodeOptions,
    pub(crate) context: Context,
    pub(crate) group: Rc<ConfigGroup>,
    pub(crate) gossip: Rc<Gossip>,
    pub(crate) portal: Rc<Portal>,
    pub(crate) owners: Rc<RefCell<BTreeMap<VolumeId, Rc<Owner>>>>,
    pub(crate) recovery: RecoveryReport,
    pub(crate) failure: watch::Sender<Option<Failure>>,
    pub(crate) leaving: Cell<bool>,
    pub(crate) healing: Healing,
    pub(crate) scrub: Scrub,
    pub(crate) moves: Moves,
    pub(crate) isolation: Isolation,
    pub(crate) under_way: UnderWay,
    pub(crate) measures: Measures,
    pub(crate) fullness: Cell<FullnessWatch>,
    pub(crate) sweep: Sweep,
    pub(crate) drain_meter: RefCell<DrainMeter>,
}

impl Node {
    /// Recovers what the directory holds and takes part in the cluster from then on.
    pub async fn start(
        runtime: Runtime,
        directory: Rc<dyn Directory>,
        links: Rc<dyn Links>,
        options: NodeOptions,
    ) -> Result<Rc<Self>, NodeError> {
        let rpc = Rpc::start(runtime.clone(), links);
        let store_options = StoreOptions {
            identity: options.identity.uuid,
            journal_bytes: options.journal_bytes,
            home_bytes: options.home_bytes,
            home_preallocated: options.home_preallocated,
            slice_blocks: SLICE_BLOCKS,
            bounds: options.store_bounds,
        };
        let (store, recovery) =
            Store::open(runtime.clone(), directory.clone(), store_options).await?;
        if recovery.found_damage() {
            tracing::warn!(?recovery, "the store was recovered with damage");
        }
        let scrub = Scrub::open(&directory, options.scrub).await;
        let group =
            ConfigGroup::start(runtime.clone(), rpc.clone(), directory, options.group).await?;
        let holder = Holder::start(runtime.clone(), rpc.clone(), store.clone());
        let local = Member {
            node: rpc.local_node(),
            incarnation: rpc.local_incarnation(),
        };
        let gossip = Gossip::start(runtime.clone(), rpc.clone(), local, options.gossip.clone());
        let config = Rc::new(GroupConfig {
            group: group.clone(),
        });
        let leases = LeaseClerk::new(runtime.clone(), rpc.clone());
        let context = Context {
            runtime,
            rpc,
            config,
            holder,
            store,
            leases,
            copying: Rc::new(Semaphore::new(COPYING_MAX)),
            copied: Rc::default(),
            bounds: options.volume_bounds,
        };
        let owners: Rc<RefCell<BTreeMap<VolumeId, Rc<Owner>>>> = Rc::default();
        let portal = Portal::start(context.clone(), owners.clone());
        serve_healing(&context, owners.clone());
        let fullness = Cell::new(FullnessWatch::new(options.fullness));
        let node = Rc::new(Self {
            fullness,
            options,
            context,
            group,
            gossip,
            portal,
            owners,
            recovery,
            failure: watch::Sender::new(None),
            leaving: Cell::new(false),
            healing: Healing::default(),
            scrub,
            moves: Moves::default(),
            isolation: Isolation::default(),
            under_way: UnderWay::default(),
            measures: Measures::default(),
            sweep: Sweep::default(),
            drain_meter: RefCell::default(),
        });
        node.announce_address();
        node.connect();
        Ok(node)
    }

    /// Wires the parts together and starts the tasks that keep them so.
    fn connect(self: &Rc<Self>) {
        let owners = self.owners.clone();
        self.context
            .holder
            .set_ack_handler(move |from, _incarnation, ack| {
                let owner = owners.borrow().get(&VolumeId(ack.volume)).cloned();
                if let Some(owner) = owner {
                    owner.on_ack(from, &ack);
                }
            });
        let owners = self.owners.clone();
        self.context
            .holder
            .set_promise_handler(move |volume, view| {
                let owner = owners.borrow().get(&VolumeId(volume)).cloned();
                if let Some(owner) = owner {
                    owner.on_promise(view);
                }
            });
        let group = self.group.clone();
        self.context
            .holder
            .set_deleted_check(move |volume| is_deleted(&group.state(), VolumeId(volume)));
        let runtime = &self.context.runtime;
        runtime.spawn("node-disks", self.clone().watch_disks());
        runtime.spawn("node-fullness", self.clone().watch_fullness());
        runtime.spawn("node-follow", self.clone().keep_following());
        runtime.spawn("node-register", self.clone().keep_registered());
        runtime.spawn("node-monitor", self.clone().keep_monitoring());
        runtime.spawn("node-voters", self.clone().keep_voters());
        runtime.spawn("node-grace", self.clone().keep_ending_grace());
        runtime.spawn("node-mending", self.clone().keep_mending());
        runtime.spawn("node-sweep", self.clone().keep_sweeping());
        runtime.spawn("node-load", self.clone().keep_measuring());
        runtime.spawn("node-balance", self.clone().keep_balancing());
        runtime.spawn("node-heal", self.clone().keep_healing());
        runtime.spawn("node-scrub", self.clone().keep_scrubbing());
        runtime.spawn("node-links", self.clone().keep_noting_links());
        runtime.spawn("node-isolation", self.clone().keep_trying_volumes());
    }

    /// A node that cannot write can keep no promise: it ends, so that its copies are taken out
    /// of the in-sync sets, and whoever restarts it reads again what the disks really hold.
    async fn watch_disks(self: Rc<Self>) {
        let store = self.context.store.clone();
        let failure = tokio::select! {
            biased;
            error = store.failed() => {
                self.say_last_words(&error).await;
                Failure::Store(error.to_string())
            }
            cause = self.group.failed() => Failure::Group(cause),
        };
        self.fail(failure);
    }

    /// Tells the others that this node's disk has failed: they need not find out by themselves,
    /// and they count how often it happens. A file system that is full is no failing disk: it
    /// gives nobody a reason to take the node out for good.
    async fn say_last_words(&self, error: &StoreError) {
        for owner in self.owners.borrow().values() {
            owner.close();
        }
        let (node, incarnation) = (self.id(), self.context.incarnation());
        let full = matches!(
            error,
            StoreError::Poisoned {
                cause: DiskError::Full { .. }
            }
        );
        let change = match full && !planted::is_active(Bug::FullIsFailure) {
            true => Change::NodeDown { node, incarnation },
            false => Change::DiskFailed {
                node,
                incarnation,
                now_unix_ms: self.context.runtime.unix_time_ms(),
            },
        };
        tokio::select! {
            biased;
            // The log is on the same disk.
            _ = self.group.failed() => {}
            said = self.group.propose(change, LAST_WORDS_LIMIT) => {
                if let Err(error) = said {
                    tracing::debug!(%error, "nobody took the last words");
                }
            }
        }
    }

    /// Makes a new cluster with this node as its first. The links must know the node as number 1.
    pub async fn found(&self, cluster: ClusterIdentity, limit: Duration) -> Result<(), NodeError> {
        let change = Change::Found {
            cluster,
            uuid: self.options.identity.uuid,
            link_address: self.options.link_address.clone(),
        };
        match self.group.initialize(change, limit).await? {
            Outcome::Refused(refusal) => Err(refusal.into()),
            Outcome::Done
            | Outcome::Admitted(_)
            | Outcome::Created(_)
            | Outcome::Reserved(_)
            | Outcome::Placed { .. } => Ok(()),
        }
    }

    /// This node's number.
    pub fn id(&self) -> NodeId {
        self.context.node()
    }

    /// The node's shared parts.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The config group.
    pub fn group(&self) -> &Rc<ConfigGroup> {
        &self.group
    }

    /// The cluster's state as last applied here.
    pub fn state(&self) -> Rc<ClusterState> {
        self.group.state()
    }

    /// Changes whenever another state has been applied.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.group.watch()
    }

    /// Proposes a change to the cluster's state; refusals are outcomes.
    pub async fn propose(&self, change: Change, limit: Duration) -> Result<Outcome, ProposeError> {
        self.group.propose(change, limit).await
    }

    /// Runs an initiator's operation on `length` bytes at `offset` of a volume: through this
    /// node's portal, wherever the owner is. Offset and length are multiples of 512. The
    /// initiator is a stranger to the volume's reservation table: one that excludes strangers
    /// keeps the volume busy.
    pub async fn run(
        &self,
        volume: VolumeId,
        offset: u64,
        length: u64,
        operation: Operation,
    ) -> Result<Bytes, IoError> {
        let own = Requester::own();
        match self.run_as(&own, volume, offset, length, operation).await {
            Ok(data) => Ok(data),
            Err(AccessError::Io(error)) => Err(error),
            Err(AccessError::Reserved) => Err(IoError::Busy),
        }
    }

    /// The same on an initiator's behalf.
    pub async fn run_as(
        &self,
        requester: &Requester,
        volume: VolumeId,
        offset: u64,
        length: u64,
        operation: Operation,
    ) -> Result<Bytes, AccessError> {
        let _operating = self.under_way.begin(self.context.runtime.now(), volume);
        self.portal
            .run(volume, offset, length, operation, requester)
            .await
    }

    /// Whether initiators cannot reach the volume through this node at present and should look
    /// for another path: the node is cut off from a majority of the cluster, and no owner on its
    /// side of the cut serves the volume.
    pub fn is_unreachable(&self, volume: VolumeId) -> bool {
        self.portal.is_cut_off() && self.isolation.has_failed(volume)
    }

    /// Tells the scrub what to do.
    pub fn order_scrub(&self, order: ScrubOrder) {
        self.scrub.order(order);
    }

    /// Becomes `Some` when the node has to stop.
    pub fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.failure.subscribe()
    }

    pub(crate) fn fail(&self, failure: Failure) {
        tracing::error!(%failure, "this node has to stop");
        for owner in self.owners.borrow().values() {
            owner.close();
        }
        self.failure.send_if_modified(|now| {
            let first = now.is_none();
            now.get_or_insert(failure);
            first
        });
    }
}
