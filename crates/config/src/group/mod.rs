//! The config group: the cluster's state on Raft.
//!
//! What it promises:
//!
//! * a change that was answered is in the state of every later leader, whatever subset of nodes
//!   survives, as long as a majority of the voters' disks does;
//! * a proposal takes effect at most once, however often it is sent again on the way;
//! * a node whose log cannot be read takes no part: it never votes from defaults;
//! * under the simulator the same seed runs the same way, and a killed process takes its Raft
//!   along.
//!
//! ```text
//! propose ─ forward ──────────────┐              ┌─ shell ─ Machine (ClusterState)
//!              │ Service::Config  ├─ openraft ───┤
//! election ────┤ Service::Raft ───┘              └─ store ─ area ─ Disk "config"
//! pulse ───────┘ (network)
//! ```

mod area;
mod batch;
mod data;
mod election;
mod error;
mod forward;
mod membership;
mod network;
mod peek;
mod pulse;
mod scheduling;
mod shell;
mod store;
mod types;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use holdfast_runtime::rpc::LinkChange;
use holdfast_runtime::task::TaskGroup;
use holdfast_runtime::{Directory, DownReason, Incarnation, NodeId, Rpc, Runtime};
use openraft::error::{Fatal, InitializeError, RaftError};
use openraft::{Config, SnapshotPolicy};
use tokio::sync::watch;

use area::HalfSizes;
pub use area::{AreaError, Damage};
pub use error::{BarrierError, GroupError, MembershipError, OptionsError, ProposeError};
pub use membership::{VOTERS_MAX, voter_count};
pub use peek::last_known_state;
pub use types::{Applied, Machine, Proposal, ProposalKey};

use crate::state::{Change, ClusterState, Outcome, Pieces, Progress, STATE_BYTES_MAX};
use batch::Batcher;
use election::Elector;
use forward::{Forwarder, Numbers};
use network::{Network, Server};
use pulse::{Pulse, Timing};
use shell::{Shell, View};
use store::{LogBounds, Store};
use types::Raft;

/// The group that replicates the cluster's state.
pub type ConfigGroup = Group<ClusterState>;

impl Machine for ClusterState {
    type Change = Change;
    type Outcome = Outcome;
    type Pieces = Pieces;

    fn apply(&mut self, change: Change) -> Outcome {
        Self::apply(self, change)
    }

    fn pieces(&self) -> Pieces {
        Self::pieces(self)
    }

    fn take_up<'a>(&mut self, bytes: &'a [u8]) -> Option<(Progress, &'a [u8])> {
        Self::take_up(self, bytes)
    }

    fn read_first(bytes: &[u8]) -> Option<(Self, &[u8])> {
        Self::read_first(bytes)
    }

    fn supply(&mut self, supplement: &[u8]) -> bool {
        Self::supply(self, supplement)
    }
}

/// Bytes of a half of a config log as it is made, and as large as it may grow.
const HALF_BYTES: u64 = 32 << 20;
const HALF_BYTES_MAX: u64 = 256 << 20;
// A half that is made anew holds a snapshot and the log behind it, and has to have room for records
// of further changes, twice. What is not counted in the state's limit, access lists and
// reservations, has a quarter for itself.
const _: () = assert!(
    STATE_BYTES_MAX <= HALF_BYTES_MAX / 2,
    "snapshots have to fit"
);

/// How long a member may take to read in, and to make durable, the state that it was sent.
const INSTALL_MAX: Duration = Duration::from_secs(60);

/// How one node takes part in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupOptions {
    /// Whether an empty config log is a new node's. False for a node that has been a member:
    /// an empty log is then a lost one, and is refused.
    pub may_create: bool,
    /// A leader speaks to each member every 1.5 of these, at the node's next shared wake-up.
    pub heartbeat: Duration,
    /// Least silence after which a voter tries to replace the leader; at least three heartbeats.
    pub election_least: Duration,
    /// Most silence before which it does.
    pub election_most: Duration,
    /// Bytes of each of the two halves of the config log as it is made. They double when the
    /// state needs it.
    pub half_bytes: u64,
    /// Bytes beyond which they do not grow: the state has to fit into one.
    pub half_bytes_max: u64,
    /// Changes after which the state is written as a whole, and the log before it given up; more
    /// if the state is large.
    pub snapshot_after: u64,
}

impl Default for GroupOptions {
    fn default() -> Self {
        Self {
            may_create: true,
            heartbeat: Duration::from_millis(200),
            election_least: Duration::from_millis(600),
            election_most: Duration::from_millis(850),
            half_bytes: HALF_BYTES,
            half_bytes_max: HALF_BYTES_MAX,
            snapshot_after: 1024,
        }
    }
}

impl GroupOptions {
    fn timing(&self) -> Result<Timing, OptionsError> {
        if self.heartbeat < Duration::from_millis(5) {
            return Err(OptionsError::HeartbeatTooShort);
        }
        if self.election_least < self.heartbeat * 3 {
            return Err(OptionsError::ElectionTooSoon);
        }
        if self.election_most <= self.election_least {
            return Err(OptionsError::ElectionEmpty);
        }
        if self.half_bytes < 64 << 10
            || !self.half_bytes.is_multiple_of(4096)
            || self.half_bytes > self.half_bytes_max
        {
            return Err(OptionsError::HalfTooSmall);
        }
        Ok(Timing {
            heartbeat: self.heartbeat,
            lease: self.heartbeat * 9 / 8,
            // Longer than a healthy leader's silence of 1.5 heartbeats and the way to a shared
            // wake-up, shorter than any wait for an election, so that its end holds up none.
            calm: self.heartbeat * 9 / 4,
            election_least: self.election_least,
            election_most: self.election_most,
        })
    }

    fn half_sizes(&self) -> HalfSizes {
        HalfSizes {
            first: self.half_bytes,
            largest: self.half_bytes_max,
        }
    }

    /// A quarter of a half, so that snapshot, log and the records behind them fit into one.
    fn log_bounds(&self) -> LogBounds {
        LogBounds {
            entries_max: self.snapshot_after,
            bytes_max: (self.half_bytes / 4) as usize,
        }
    }

    /// Written twice, and a few of them are between two snapshots.
    fn change_bytes_max(&self) -> usize {
        (self.half_bytes / 32) as usize
    }
}

/// One node's part in a group that replicates a [`Machine`].
pub struct Group<M: Machine> {
    rpc: Rc<Rpc>,
    runtime: Runtime,
    raft: Raft<M>,
    view: Rc<View<M>>,
    pulse: Rc<Pulse>,
    forwarder: Rc<Forwarder<M>>,
    _server: Rc<Server<M>>,
    _tasks: TaskGroup,
}

impl<M: Machine> Group<M> {
    /// Reads the node's config log and takes part from then on: as the member that the log says
    /// it is, or as nobody until [`Self::initialize`] or a leader makes it one.
    pub async fn start(
        runtime: Runtime,
        rpc: Rc<Rpc>,
        directory: Rc<dyn Directory>,
        options: GroupOptions,
    ) -> Result<Rc<Self>, GroupError> {
        let timing = options.timing()?;
        let node = rpc.local_node();
        let opened = Store::open(directory, node, options.half_sizes(), options.may_create);
        let store = opened.await?.ok_or(GroupError::Missing)?;
        let view = View::new();
        let shell = Shell::recover(store.clone(), view.clone(), options.log_bounds())
            .await
            .map_err(|error| GroupError::Inconsistent(error.into()))?;
        let pulse = Rc::new(Pulse::new(runtime.clone(), timing));
        let network = Network {
            rpc: rpc.clone(),
            pulse: pulse.clone(),
            store: store.clone(),
        };
        let config = Arc::new(raft_config(timing));
        let log_end_at_start = store.log_end();
        let raft = Raft::new(node, config, network, store, shell)
            .await
            .map_err(GroupError::Inconsistent)?;
        pulse.attach(raft.data_metrics());

        let server = Rc::new(Server {
            raft: raft.clone(),
            pulse: pulse.clone(),
            metrics: raft.server_metrics(),
            arriving: RefCell::default(),
        });
        Server::serve(&server, &rpc);
        let forwarder = Rc::new(Forwarder {
            runtime: runtime.clone(),
            rpc: rpc.clone(),
            raft: raft.clone(),
            batcher: Batcher::new(
                runtime.clone(),
                raft.clone(),
                node,
                options.change_bytes_max(),
            ),
            view: view.clone(),
            pulse: pulse.clone(),
            timing,
            change_bytes_max: options.change_bytes_max(),
            numbers: Numbers::new(),
            log_end_at_start,
        });
        Forwarder::serve(&forwarder);

        let mut tasks = TaskGroup::default();
        let elector = Elector {
            runtime: runtime.clone(),
            rpc: rpc.clone(),
            raft: raft.clone(),
            pulse: pulse.clone(),
            timing,
        };
        tasks.add(runtime.spawn("config-election", elector.run()));
        let beat = keep_beating(runtime.clone(), node, raft.clone(), timing);
        tasks.add(runtime.spawn("config-heartbeat", beat));
        let links = watch_links(rpc.clone(), raft.clone(), pulse.clone());
        tasks.add(runtime.spawn("config-links", links));
        tasks.add(runtime.spawn(
            "config-snapshots",
            take_snapshots(raft.clone(), view.clone()),
        ));
        Ok(Rc::new(Self {
            rpc,
            runtime,
            raft,
            view,
            pulse,
            forwarder,
            _server: server,
            _tasks: tasks,
        }))
    }

    /// Makes this node the first member of a new group and applies `first`. Asking again after
    /// a failure or a restart is safe if `first` itself refuses to be applied twice.
    pub async fn initialize(
        &self,
        first: M::Change,
        limit: Duration,
    ) -> Result<M::Outcome, GroupError> {
        let node = self.rpc.local_node();
        match self.raft.initialize(BTreeSet::from([node])).await {
            Ok(()) => {}
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                let metrics = self.raft.server_metrics();
                let alone = metrics.borrow().membership_config.voter_ids().eq([node]);
                if !alone {
                    return Err(GroupError::AlreadyInitialized);
                }
            }
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
                unreachable!("the node is in the set that it gives")
            }
            Err(RaftError::Fatal(_)) => return Err(ProposeError::Stopped.into()),
        }
        Ok(self.propose(first, limit).await?)
    }

    /// The state that this node has applied; cheap.
    pub fn state(&self) -> Rc<M> {
        self.view.state()
    }

    /// The index of the last entry this node has applied; changes whenever [`Self::state`] may
    /// have.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.view.watch()
    }

    /// Proposes a change and answers with its outcome, from any member. Follows changes of
    /// leadership until `limit`; the change takes effect at most once. When this returns an
    /// outcome before `limit`, [`Self::state`] of this node includes the change.
    pub async fn propose(
        &self,
        change: M::Change,
        limit: Duration,
    ) -> Result<M::Outcome, ProposeError> {
        self.forwarder.propose(change, limit).await
    }

    /// When this returns, [`Self::state`] includes every change whose outcome anybody had heard
    /// before the call.
    pub async fn read_barrier(&self, limit: Duration) -> Result<(), BarrierError> {
        self.forwarder.read_barrier(limit).await
    }

    /// The leader as far as this node knows. It may be gone already.
    pub fn leader(&self) -> Option<NodeId> {
        self.forwarder.leader()
    }

    /// Whether this node leads, as far as it knows. Another may have taken over; then no change
    /// can be made from here.
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.rpc.local_node())
    }

    /// Time since this node was last in touch with a majority of the group.
    pub fn out_of_touch(&self) -> Duration {
        self.pulse.out_of_touch()
    }

    /// Resolves when this node, as a follower, hears its leader after this call.
    pub async fn heard_leader(&self) {
        self.pulse.heard_again().await;
    }

    /// Returns as soon as [`Self::leader`] is not `known`, and never once the group has stopped.
    pub async fn leader_changed(&self, known: Option<NodeId>) -> Option<NodeId> {
        let mut metrics = self.raft.metrics();
        let mut server_metrics = self.raft.server_metrics();
        loop {
            metrics.mark_unchanged();
            server_metrics.mark_unchanged();
            let leader = self.leader();
            if leader != known {
                return leader;
            }
            // A leader may be cut off, which shows in the metrics that change with every message;
            // those of a follower need not be looked at.
            let leads = server_metrics.borrow().state.is_leader();
            let changed = if leads {
                metrics.changed().await
            } else {
                server_metrics.changed().await
            };
            if changed.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The term of the latest vote this node knows of: how many elections were tried.
    pub fn term(&self) -> u64 {
        self.raft
            .server_metrics()
            .borrow()
            .vote
            .leader_id()
            .get_term()
    }

    /// The voters, as far as this node knows.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.raft
            .server_metrics()
            .borrow()
            .membership_config
            .voter_ids()
            .collect()
    }

    /// All members, voters and learners, as far as this node knows.
    pub fn members(&self) -> BTreeSet<NodeId> {
        let metrics = self.raft.server_metrics();
        metrics
            .borrow()
            .membership_config
            .nodes()
            .map(|(node, _)| *node)
            .collect()
    }

    /// Makes the group consist of `eligible`: new nodes become learners, up to
    /// [`VOTERS_MAX`] of those that have caught up become voters, members that are not eligible
    /// leave. The leader calls it; it waits for learners to catch up until `limit`. Calling it
    /// with nothing to do costs nothing.
    pub async fn reconcile_voters(
        &self,
        eligible: &[NodeId],
        limit: Duration,
    ) -> Result<(), MembershipError> {
        self.reconcile_members(eligible, eligible, limit).await
    }

    /// The same; members that are not eligible stay, as learners. A leader among them hands its
    /// office over.
    pub async fn reconcile_members(
        &self,
        members: &[NodeId],
        eligible: &[NodeId],
        limit: Duration,
    ) -> Result<(), MembershipError> {
        let (runtime, rpc) = (&self.runtime, &self.rpc);
        membership::reconcile(runtime, rpc, &self.raft, members, eligible, limit).await
    }

    /// Says that the leader's process is known to be gone: elect as soon as the voters' leases
    /// allow. A link that a live host refuses tells the group by itself.
    pub fn hint_leader_gone(&self) {
        self.pulse.report_leader_gone();
    }

    /// Returns why, once the group cannot go on because its log cannot be written or read; never
    /// after [`Self::shutdown`].
    pub async fn failed(&self) -> String {
        // Closed once the group's task has ended, and seldom changed before.
        let mut server_metrics = self.raft.server_metrics();
        while server_metrics.changed().await.is_ok() {}
        match &self.raft.metrics().borrow().running_state {
            Ok(()) | Err(Fatal::Stopped) => std::future::pending().await,
            Err(fatal @ (Fatal::StorageError(_) | Fatal::Panicked)) => fatal.to_string(),
        }
    }

    /// Lets another node lead, if this one does and there is another voter, and returns when it
    /// does, or after `limit`. Nothing can be proposed meanwhile. The node is to end afterwards.
    pub async fn retire(&self, limit: Duration) {
        if !self.is_leader() || self.voters().len() < 2 {
            return;
        }
        self.pulse.retire();
        let succeeded = self.leader_changed(None);
        let _ = self.runtime.timeout(limit, succeeded).await;
    }

    /// Stops taking part; what is durable stays. Returns when nothing is written any more.
    pub async fn shutdown(&self) {
        // The core is the only one to write, and has no way to fail to end.
        let _ = self.raft.shutdown().await;
    }
}

/// openraft's timer ticks at every member, every 1.5 of its heartbeat intervals. Only leaders need
/// heartbeats, and those come from [`keep_beating`]. What is left for the timer is a leader that
/// has given its vote away: it notices at the next tick, after the others have
/// elected.
const OPENRAFT_TICK_HEARTBEATS: u32 = 20;

/// Lets a leader speak. One that has no vote any more falls silent, so that the others elect.
async fn keep_beating<M: Machine>(runtime: Runtime, node: NodeId, raft: Raft<M>, timing: Timing) {
    let mut metrics = raft.server_metrics();
    loop {
        let leads = {
            let metrics = metrics.borrow_and_update();
            let membership = metrics.membership_config.membership();
            metrics.state.is_leader() && membership.voter_ids().any(|voter| voter == node)
        };
        if !leads {
            if metrics.changed().await.is_err() {
                return;
            }
            continue;
        }
        // A new leader's first word is the entry that it begins its term with.
        runtime.sleep_roughly(timing.heartbeat * 3 / 2).await;
        if metrics.borrow().state.is_leader() && raft.trigger().heartbeat().await.is_err() {
            return;
        }
    }
}

fn raft_config(timing: Timing) -> Config {
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let lease = milliseconds(timing.lease);
    Config {
        cluster_name: "holdfast".to_owned(),
        heartbeat_interval: milliseconds(timing.heartbeat * OPENRAFT_TICK_HEARTBEATS),
        enable_heartbeat: false,
        // The time limit of a vote request, and the lease; `election` decides when to elect.
        election_timeout_min: lease - 1,
        election_timeout_max: lease,
        enable_elect: false,
        install_snapshot_timeout: milliseconds(INSTALL_MAX),
        max_payload_entries: 64,
        // See `Store::is_long`.
        snapshot_policy: SnapshotPolicy::Never,
        // Whoever needs an entry that a snapshot contains is sent the snapshot.
        max_in_snapshot_log_to_keep: 0,
        ..Config::default()
    }
}

/// Notices that the leader's process is gone: a live host refuses its connection, or the node
/// has started anew, as it does when it is restarted at once.
async fn watch_links<M: Machine>(rpc: Rc<Rpc>, raft: Raft<M>, pulse: Rc<Pulse>) {
    let mut changes = rpc.watch_links();
    drop(rpc);
    let mut starts: BTreeMap<NodeId, Incarnation> = BTreeMap::new();
    while let Some(change) = changes.recv().await {
        let gone = match change {
            LinkChange::Down(peer, _, DownReason::Refused) => Some(peer),
            LinkChange::Up(peer, start) => {
                let before = starts.insert(peer, start);
                before.filter(|before| *before < start).map(|_| peer)
            }
            LinkChange::Down(_, _, DownReason::Lost) => None,
        };
        if gone.is_some() && raft.server_metrics().borrow().current_leader == gone {
            pulse.report_leader_gone();
        }
    }
}

/// Takes a snapshot when the log has grown long.
async fn take_snapshots<M: Machine>(raft: Raft<M>, view: Rc<View<M>>) {
    loop {
        view.log_is_long.notified().await;
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}
