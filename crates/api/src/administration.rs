//! Answers requests from the cluster's state, on the node's own thread.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use holdfast_config::state::{
    Change, FrontChange, Outcome, Refusal, SLICE_BYTES, VolumeRecord, VolumeSpec,
};
use holdfast_node::{MoveCause, MoveError, Node, ScrubOrder as NodeScrubOrder};
use holdfast_runtime::NodeId;
use holdfast_runtime::host::{ClusterAuthority, HostLinks, JoinToken};
use holdfast_wire::{View, VolumeId};
use sha2::{Digest, Sha256};

use crate::listing::{
    self, NodePage, SlicePage, VolumePage, WhichNodes, WhichSlices, WhichVolumes,
};
use crate::peers::{Answer, Heard, Peers, Silence};
use crate::problem::{Problem, ProblemKind};
use crate::requests::Request;
use crate::types::{
    ClusterStatus, CreatedVolume, DrainPlan, JoinTokenText, NewOwner, NewSecret, NewToken,
    NewVolume, NodeState, NodeStatus, RotatedSecret, ScrubAction, ScrubOrder, SelfReport,
    VolumeChange, VolumeStatus,
};
use crate::views::{self, Seen, Shared};
use crate::{names, peers, reports, secrets};

/// Longer than an election and a takeover of the leader's office.
const PROPOSAL_LIMIT: Duration = Duration::from_secs(10);
/// How long a listing waits to be up to date before it shows what this node knows.
const BARRIER_LIMIT: Duration = Duration::from_millis(1500);
/// How long a new volume is waited for; it opens without the wait too.
const OPENING_LIMIT: Duration = Duration::from_secs(5);
const TOKEN_SECONDS_MAX: u64 = 30 * 24 * 3600;
const GRACE_SECONDS_MAX: u64 = 366 * 24 * 3600;

/// What a node without a cluster says.
pub const NO_CLUSTER: &str = "this node belongs to no cluster yet";

/// See the module's header.
pub struct Administration {
    node: Rc<Node>,
    links: Rc<HostLinks>,
    link_address: String,
    peers: Peers,
}

impl Administration {
    /// Answers for `node`, which other nodes reach at `link_address`.
    pub fn new(node: Rc<Node>, links: Rc<HostLinks>, link_address: String) -> Rc<Self> {
        let administration = Rc::new(Self {
            node,
            links,
            link_address,
            peers: Peers::default(),
        });
        let weak = Rc::downgrade(&administration);
        peers::serve(&administration.node.context().rpc, move || {
            let administration = weak.upgrade()?;
            Some((administration.node.clone(), administration.links.clone()))
        });
        administration
    }

    /// The node that answers.
    pub(crate) fn node(&self) -> &Rc<Node> {
        &self.node
    }

    /// Answers one request. Nobody waiting for the answer any more is no error.
    pub async fn answer(self: Rc<Self>, request: Request) {
        let _ = match request {
            Request::Cluster(reply) => reply.send(Ok(self.cluster().await)).is_ok(),
            Request::Found(_, reply) => reply.send(Err(Refusal::AlreadyFounded.into())).is_ok(),
            Request::AddToken(wanted, reply) => reply.send(self.add_token(&wanted).await).is_ok(),
            Request::Balance(which, reply) => reply.send(Ok(self.balance(which).await)).is_ok(),
            Request::ChangeBalance(wanted, reply) => {
                reply.send(self.change_balance(wanted).await).is_ok()
            }
            Request::CopyBalance(reply) => reply.send(Ok(self.copy_balance().await)).is_ok(),
            Request::MoveCopies(moves, reply) => reply.send(self.move_copies(moves).await).is_ok(),
            Request::OwnReport(reply) => reply.send(Ok(self.own_report(true))).is_ok(),
            Request::Nodes(which, reply) => reply.send(self.nodes(&which).await).is_ok(),
            Request::Node(id, reply) => reply.send(self.one_node(id).await).is_ok(),
            Request::Evict(id, reply) => reply.send(self.evict(id).await).is_ok(),
            Request::DrainPlan(id, reply) => reply.send(self.drain_plan(id).await).is_ok(),
            Request::Drain(id, reply) => reply.send(self.drain(id).await).is_ok(),
            Request::CancelDrain(id, reply) => reply.send(self.cancel_drain(id).await).is_ok(),
            Request::Remove(id, reply) => reply.send(self.remove(id).await).is_ok(),
            Request::OrderScrub(id, order, reply) => {
                reply.send(self.order_scrub(id, order).await).is_ok()
            }
            Request::ForgetStalls(id, reply) => reply.send(self.forget_stalls(id).await).is_ok(),
            Request::Volumes(which, reply) => reply.send(self.volumes(&which).await).is_ok(),
            Request::Slices(name, which, reply) => {
                reply.send(self.slices(&name, &which).await).is_ok()
            }
            Request::Volume(name, reply) => reply.send(self.volume(&name).await).is_ok(),
            Request::CreateVolume(wanted, reply) => {
                reply.send(self.create_volume(wanted).await).is_ok()
            }
            Request::ChangeVolume(name, wanted, reply) => {
                reply.send(self.change_volume(&name, &wanted).await).is_ok()
            }
            Request::RotateSecret(name, wanted, reply) => {
                reply.send(self.rotate_secret(&name, &wanted).await).is_ok()
            }
            Request::MoveVolume(name, wanted, reply) => {
                reply.send(self.move_volume(&name, &wanted).await).is_ok()
            }
            Request::DeleteVolume(name, reply) => {
                reply.send(self.delete_volume(&name).await).is_ok()
            }
        };
    }

    /// How the cluster is.
    pub async fn cluster(&self) -> ClusterStatus {
        let confirmed = self.confirm().await;
        let state = self.node.state();
        let volumes = views::to_explain(&state);
        // How far a drain is, is said in bytes.
        let heard = self.hear(&volumes, !state.draining.is_empty()).await;
        views::cluster(&self.seen(heard), confirmed)
    }

    async fn add_token(&self, wanted: &NewToken) -> Result<JoinTokenText, Problem> {
        if wanted.expires_s == 0 || wanted.expires_s > TOKEN_SECONDS_MAX {
            return Err(Problem::new(
                ProblemKind::Invalid,
                format!("a token cannot last {} seconds", wanted.expires_s),
                "between one second and 30 days are possible",
            ));
        }
        let state = self.node.state();
        let cluster = state.cluster.as_ref().ok_or_else(|| {
            let hint = "it is being started: ask again in a moment";
            Problem::new(ProblemKind::NoCluster, NO_CLUSTER, hint)
        })?;
        let authority = std::str::from_utf8(&cluster.authority)
            .ok()
            .and_then(|text| ClusterAuthority::from_pem(text).ok())
            .ok_or_else(|| {
                let detail = "the cluster's certificate authority cannot be read";
                Problem::new(ProblemKind::Internal, detail, "")
            })?;
        let runtime = &self.node.context().runtime;
        let mut secret = [0; 16];
        runtime.random_bytes(&mut secret);
        let expires_unix_ms = runtime.unix_time_ms() + wanted.expires_s * 1000;
        self.propose(Change::AddToken {
            secret_hash: Sha256::digest(secret).into(),
            expires_unix_ms,
        })
        .await?;
        let token = JoinToken {
            authority: authority.fingerprint(),
            secret,
            address: self.link_address.clone(),
        };
        Ok(JoinTokenText {
            token: token.encode(),
            expires_unix_ms,
        })
    }

    fn own_report(&self, copies: bool) -> SelfReport {
        reports::own_report(&self.node, &self.links, copies)
    }

    async fn nodes(&self, which: &WhichNodes) -> Result<NodePage, Problem> {
        self.confirm_first_page(which.cursor.as_deref()).await;
        let heard = self.hear(&[], true).await;
        let mut nodes = views::nodes(&self.seen(heard));
        nodes.retain(|node| which.evicted || node.state != NodeState::Evicted);
        listing::nodes(nodes, which)
    }

    async fn one_node(&self, id: u64) -> Result<NodeStatus, Problem> {
        self.confirm().await;
        let node = NodeId(id);
        let state = self.node.state();
        if !state.nodes.contains_key(&node) {
            return Err(Refusal::NodeUnknown(node).into());
        }
        let heard = match state.draining.contains_key(&node) {
            // How far that is, all nodes know together.
            true => self.hear(&[], true).await,
            false => {
                let rpc = &self.node.context().rpc;
                let wanted = BTreeSet::from([node]);
                let no_volumes = BTreeMap::new();
                (self.peers)
                    .ask(rpc, &state, &wanted, &no_volumes, true)
                    .await
            }
        };
        self.shown_node(node, heard)
    }

    fn shown_node(&self, node: NodeId, heard: Heard) -> Result<NodeStatus, Problem> {
        let nodes = views::nodes(&self.seen(heard));
        let found = nodes.into_iter().find(|status| status.id == node.0);
        found.ok_or_else(|| Refusal::NodeUnknown(node).into())
    }

    async fn evict(&self, id: u64) -> Result<NodeStatus, Problem> {
        let node = NodeId(id);
        self.propose(Change::Evict { node }).await?;
        self.one_node(id).await
    }

    async fn drain_plan(&self, id: u64) -> Result<DrainPlan, Problem> {
        self.confirm().await;
        let node = NodeId(id);
        self.known(node)?;
        let heard = self.hear(&[], true).await;
        Ok(views::drain_plan(&self.seen(heard), node))
    }

    async fn drain(&self, id: u64) -> Result<NodeStatus, Problem> {
        let node = NodeId(id);
        let now_unix_ms = self.node.context().runtime.unix_time_ms();
        self.propose(Change::Drain { node, now_unix_ms }).await?;
        self.one_node(id).await
    }

    async fn cancel_drain(&self, id: u64) -> Result<NodeStatus, Problem> {
        let node = NodeId(id);
        self.propose(Change::CancelDrain { node }).await?;
        self.one_node(id).await
    }

    async fn remove(&self, id: u64) -> Result<NodeStatus, Problem> {
        let node = NodeId(id);
        self.known(node)?;
        if self.node.group().voters() == BTreeSet::from([node]) {
            return Err(Problem::new(
                ProblemKind::Unavailable,
                format!("node {node} alone decides for the cluster: without it nobody could"),
                "another node takes that over once it has caught up: `holdfast cluster status` \
                 shows the voters",
            ));
        }
        self.propose(Change::RemoveNode { node }).await?;
        self.one_node(id).await
    }

    async fn order_scrub(&self, id: u64, order: ScrubOrder) -> Result<NodeStatus, Problem> {
        let node = NodeId(id);
        if node == self.node.id() {
            self.node.order_scrub(match order.action {
                ScrubAction::Start => NodeScrubOrder::Start,
                ScrubAction::Pause => NodeScrubOrder::Pause,
                ScrubAction::Resume => NodeScrubOrder::Resume,
            });
            return self.one_node(id).await;
        }
        self.known(node)?;
        let rpc = &self.node.context().rpc;
        let answer = peers::order_scrub(rpc, node, order.action).await;
        self.after_order(node, answer)
    }

    async fn forget_stalls(&self, id: u64) -> Result<NodeStatus, Problem> {
        let node = NodeId(id);
        if node == self.node.id() {
            self.node.context().runtime.forget_stalls();
            return self.one_node(id).await;
        }
        self.known(node)?;
        let answer = peers::forget_stalls(&self.node.context().rpc, node).await;
        self.after_order(node, answer)
    }

    fn known(&self, node: NodeId) -> Result<(), Problem> {
        match self.node.state().nodes.contains_key(&node) {
            true => Ok(()),
            false => Err(Refusal::NodeUnknown(node).into()),
        }
    }

    /// The node that was told something, as it says of itself since.
    fn after_order(
        &self,
        node: NodeId,
        answer: Result<Answer, Silence>,
    ) -> Result<NodeStatus, Problem> {
        if let Err(silence) = answer {
            return Err(Problem::new(
                ProblemKind::Unavailable,
                format!("node {node} {}", silence.text()),
                "`holdfast node list` shows how the nodes are. The order may have been obeyed; to \
                 give it once more does no harm",
            ));
        }
        let mut heard = Heard::default();
        heard.note(node, answer);
        self.shown_node(node, heard)
    }

    async fn volumes(&self, which: &WhichVolumes) -> Result<VolumePage, Problem> {
        self.confirm_first_page(which.cursor.as_deref()).await;
        let (ids, next_cursor) = listing::volumes(&self.node.state(), which)?;
        // Owners say what they do, and every node for how long its initiators wait.
        let heard = self.hear(&ids, false).await;
        let seen = self.seen(heard);
        let shared = Shared::of(&seen);
        let ids = ids.into_iter();
        Ok(VolumePage {
            volumes: ids
                .filter_map(|id| views::volume(&seen, &shared, id))
                .collect(),
            next_cursor,
        })
    }

    async fn volume(&self, name: &str) -> Result<VolumeStatus, Problem> {
        self.confirm().await;
        let state = self.node.state();
        let (id, _) = self.find(&state, name)?;
        let heard = self.hear(&[id], false).await;
        self.shown_volume(id, heard)
            .ok_or_else(|| unknown_volume(name))
    }

    fn shown_volume(&self, id: VolumeId, heard: Heard) -> Option<VolumeStatus> {
        let seen = self.seen(heard);
        views::volume(&seen, &Shared::of(&seen), id)
    }

    async fn slices(&self, name: &str, which: &WhichSlices) -> Result<SlicePage, Problem> {
        self.confirm_first_page(which.cursor.as_deref()).await;
        let state = self.node.state();
        let (_, record) = self.find(&state, name)?;
        listing::slices(record, which)
    }

    async fn create_volume(&self, wanted: NewVolume) -> Result<CreatedVolume, Problem> {
        let runtime = &self.node.context().runtime;
        let chap = secrets::credentials(runtime, &wanted.name, wanted.authentication);
        let credentials = chap.as_ref().map(secrets::shown);
        let name = wanted.name.clone();
        let front = FrontChange {
            allow: names::allowed(&wanted.initiators)?,
            redirect_to_owner: wanted.redirect_to_owner.then_some(true),
            ..FrontChange::default()
        };
        let outcome = self
            .propose(Change::CreateThinVolume {
                spec: VolumeSpec {
                    name: wanted.name,
                    size_bytes: wanted.size_bytes,
                    logical_block_bytes: wanted.block_size,
                    copies: wanted.copies,
                    slice_bytes: SLICE_BYTES,
                    chap,
                    naa_random: runtime.random_u64(),
                    now_unix_ms: runtime.unix_time_ms(),
                },
                front,
            })
            .await?;
        let Outcome::Created(id) = outcome else {
            unreachable!("creating a volume has no other good outcome");
        };
        runtime.timeout(OPENING_LIMIT, self.opened(id)).await;
        let volume = self.shown_volume(id, Heard::default());
        let volume = volume.ok_or_else(|| unknown_volume(&name))?;
        Ok(CreatedVolume {
            volume,
            credentials,
        })
    }

    async fn change_volume(
        &self,
        name: &str,
        wanted: &VolumeChange,
    ) -> Result<VolumeStatus, Problem> {
        self.confirm().await;
        let state = self.node.state();
        let (volume, _) = self.find(&state, name)?;
        let front = FrontChange {
            anyone: wanted.allow_anyone,
            allow: names::allowed(&wanted.allow_initiators)?,
            deny: names::denied(&wanted.deny_initiators, state.front(volume))?,
            redirect_to_owner: wanted.redirect_to_owner,
            revoke_old_secrets: wanted.revoke_old_secrets,
        };
        if front != FrontChange::default() {
            let change = front;
            self.propose(Change::ChangeFront { volume, change }).await?;
        }
        if let Some(size_bytes) = wanted.size_bytes {
            let expected_bytes = wanted.expected_size_bytes;
            self.propose(Change::ResizeVolume {
                volume,
                expected_bytes,
                size_bytes,
            })
            .await?;
            let runtime = &self.node.context().runtime;
            runtime.timeout(OPENING_LIMIT, self.grown(volume)).await;
        }
        self.volume(name).await
    }

    async fn rotate_secret(
        &self,
        name: &str,
        wanted: &NewSecret,
    ) -> Result<RotatedSecret, Problem> {
        if wanted.grace_s > GRACE_SECONDS_MAX {
            return Err(Problem::new(
                ProblemKind::Invalid,
                format!(
                    "an old secret cannot stay valid for {} seconds",
                    wanted.grace_s
                ),
                "a year at most is possible",
            ));
        }
        self.confirm().await;
        let state = self.node.state();
        let (volume, record) = self.find(&state, name)?;
        let runtime = &self.node.context().runtime;
        let authentication = views::authentication(record.chap.as_ref());
        let Some(chap) = secrets::credentials(runtime, name, authentication) else {
            return Err(Refusal::NoSecret.into());
        };
        let credentials = secrets::shown(&chap);
        let now_unix_ms = runtime.unix_time_ms();
        let grace_ms = if wanted.revoke {
            0
        } else {
            wanted.grace_s * 1000
        };
        let old_until_unix_ms = now_unix_ms + grace_ms;
        self.propose(Change::RotateSecret {
            volume,
            chap,
            now_unix_ms,
            old_until_unix_ms,
            revoke: wanted.revoke,
        })
        .await?;
        Ok(RotatedSecret {
            credentials,
            old_until_unix_ms: (grace_ms > 0).then_some(old_until_unix_ms),
        })
    }

    async fn move_volume(&self, name: &str, wanted: &NewOwner) -> Result<VolumeStatus, Problem> {
        self.confirm().await;
        let state = self.node.state();
        let (volume, record) = self.find(&state, name)?;
        let (view, to) = (wanted.view.map_or(record.view, View), NodeId(wanted.node));
        let cause = match wanted.balance {
            true => MoveCause::Balance,
            false => MoveCause::Wish,
        };
        let moved = self
            .node
            .move_volume(volume, view, to, cause, PROPOSAL_LIMIT);
        let moved = moved.await;
        match moved {
            // What the volume waits for is a part of the answer.
            Ok(()) | Err(MoveError::NotServing) => self.volume(name).await,
            Err(MoveError::Refused(Refusal::ViewStale)) => Err(Problem::new(
                ProblemKind::Conflict,
                format!("the owner of {name:?} has changed meanwhile"),
                "`holdfast volume show` shows the owner now; ask again if it shall be another",
            )),
            Err(MoveError::Refused(refusal)) => Err(refusal.into()),
            Err(error @ (MoveError::Undecided | MoveError::TooSoon)) => Err(Problem::new(
                ProblemKind::Undecided,
                error.to_string(),
                "a majority of the nodes has to run: `holdfast cluster status` shows what is \
                 missing. The volume may still move: look before you ask again",
            )),
        }
    }

    /// Resolves when the volume has grown as far as it was to.
    async fn grown(&self, volume: VolumeId) {
        let mut watch = self.node.watch();
        loop {
            watch.mark_unchanged();
            let grows = self.node.state().growing.contains_key(&volume);
            if !grows || watch.changed().await.is_err() {
                return;
            }
        }
    }

    async fn delete_volume(&self, name: &str) -> Result<(), Problem> {
        self.confirm().await;
        let state = self.node.state();
        let (volume, _) = self.find(&state, name)?;
        self.propose(Change::DeleteVolume { volume })
            .await
            .map(drop)
    }

    /// Resolves when the volume serves, or is gone.
    async fn opened(&self, volume: VolumeId) {
        let mut watch = self.node.watch();
        loop {
            watch.mark_unchanged();
            let state = self.node.state();
            let record = state.volumes.get(&volume);
            if record.is_none_or(|record| record.open) || watch.changed().await.is_err() {
                return;
            }
        }
    }

    fn find<'a>(
        &self,
        state: &'a holdfast_config::state::ClusterState,
        name: &str,
    ) -> Result<(VolumeId, &'a VolumeRecord), Problem> {
        state
            .volume_by_name(name)
            .ok_or_else(|| unknown_volume(name))
    }

    pub(crate) async fn propose(&self, change: Change) -> Result<Outcome, Problem> {
        match self.node.propose(change, PROPOSAL_LIMIT).await? {
            Outcome::Refused(refusal) => Err(refusal.into()),
            outcome @ (Outcome::Done
            | Outcome::Admitted(_)
            | Outcome::Created(_)
            | Outcome::Reserved(_)
            | Outcome::Placed { .. }) => Ok(outcome),
        }
    }

    /// Waits until this node knows what the cluster knows; false if no majority says so.
    pub(crate) async fn confirm(&self) -> bool {
        let barrier = self.node.group().read_barrier(BARRIER_LIMIT).await;
        barrier.is_ok()
    }

    /// The same for a listing. Pages that follow the first show no older state than that did.
    async fn confirm_first_page(&self, cursor: Option<&str>) {
        if cursor.is_none() {
            self.confirm().await;
        }
    }

    /// What all nodes say of themselves, and the owners of these volumes of what they do; with what
    /// the nodes' copies take, if `copies` says so.
    async fn hear(&self, volumes: &[VolumeId], copies: bool) -> Heard {
        let state = self.node.state();
        let mut by_owner: BTreeMap<NodeId, Vec<u64>> = BTreeMap::new();
        for volume in volumes {
            let owner = state.volumes.get(volume).and_then(|record| record.owner);
            if let Some(owner) = owner {
                by_owner.entry(owner.node).or_default().push(volume.0);
            }
        }
        let wanted = state.nodes.keys().copied().collect();
        let rpc = &self.node.context().rpc;
        let mut heard = (self.peers)
            .ask(rpc, &state, &wanted, &by_owner, copies)
            .await;
        for volume in volumes {
            if let Some(status) = self.node.owner_status(*volume) {
                let report = reports::owner_report(&self.node, &status);
                heard.owners.insert(*volume, report);
            }
        }
        heard
    }

    fn seen(&self, mut heard: Heard) -> Seen {
        let own = self.own_report(heard.copies);
        heard.reports.insert(self.node.id(), own);
        Seen {
            state: self.node.state(),
            local: self.node.id(),
            leader: self.node.group().leader(),
            voters: self.node.group().voters(),
            heard,
            missing_links: views::missing_links(&self.node),
            now_unix_ms: self.node.context().runtime.unix_time_ms(),
        }
    }
}

fn unknown_volume(name: &str) -> Problem {
    Problem::new(
        ProblemKind::Unknown,
        format!("there is no volume named {name:?}"),
        "`holdfast volume list` shows the volumes",
    )
}
