//! The pure core: `handle(now, event) -> commands` over foca and the directory.
//!
//! Invariants:
//!
//! * every peer has an entry in the health table, also one that was never heard (incarnation 0);
//! * a refused connection marks one incarnation down until its link comes up again or a larger
//!   incarnation is heard; rumours cannot raise it;
//! * the core judges others only while it runs itself: if it wakes much later than it asked to,
//!   its clocks for suspicions and probes resume where they stood.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use foca::{Foca, NoCustomBroadcast, Notification, State};
use holdfast_runtime::{Incarnation, Instant, NodeId};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::anti_entropy::{self, Directory, PublishError, Published};
use crate::codec::{Codec, Identity, is_ack, screen};
use crate::health::{Health, HealthChange, Proof, Status};
use crate::options::{Options, RUMOUR_PERIOD};

/// First byte of a datagram.
const VERSION: u8 = 1;
const KIND_MEMBERSHIP: u8 = 1;
const KIND_EXCHANGE: u8 = 2;
/// Longest exchange message: a full delta and a digest, with room to spare.
const EXCHANGE_BYTES_MAX: usize = 64 << 10;

/// One start of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Which start of its process; larger at every start.
    pub incarnation: Incarnation,
}

/// What happens to a core.
#[derive(Clone, Debug)]
pub enum Event {
    /// A datagram came in over the link from this process.
    Datagram {
        /// The sender.
        from: NodeId,
        /// The sender's start.
        incarnation: Incarnation,
        /// What [`Command::Send`] carried.
        bytes: Bytes,
    },
    /// The link to the peer's process of this incarnation came up.
    LinkUp(NodeId, Incarnation),
    /// The peer's live host refused a connection; this incarnation was seen last.
    LinkRefused(NodeId, Incarnation),
    /// The peers are these; the local node is ignored.
    Peers(BTreeSet<NodeId>),
    /// The time of the last [`Command::WakeAt`] has come.
    Tick,
}

/// What a core wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send a datagram; it may be lost.
    Send {
        /// The peer.
        to: NodeId,
        /// The datagram.
        bytes: Bytes,
    },
    /// Deliver [`Event::Tick`] at this time; replaces the earlier wish.
    WakeAt(Instant),
    /// The belief about a peer changed.
    Health(HealthChange),
}

#[derive(Debug)]
enum Timer {
    Foca(foca::Timer<Identity>),
    Exchange,
    Announce,
}

/// One node's gossip, without clock, network or hidden randomness.
pub struct Core {
    local: Member,
    options: Options,
    foca: Foca<Identity, Codec, ChaCha8Rng, NoCustomBroadcast>,
    directory: Directory,
    random: ChaCha8Rng,
    peers: BTreeSet<NodeId>,
    /// When each peer was announced; decides what silence from the start means.
    expected_since: BTreeMap<NodeId, Instant>,
    refused: BTreeMap<NodeId, Incarnation>,
    health: BTreeMap<NodeId, Health>,
    /// Peers yet to be visited in this turn of exchanges.
    exchange_turn: Vec<NodeId>,
    /// By deadline, then in the order of arrival.
    timers: BTreeMap<(Instant, u64), Timer>,
    timers_set: u64,
    /// foca's timer for spreading rumours, while there are none to spread.
    rumour_timer: Option<foca::Timer<Identity>>,
    /// Whether there is a timer for inviting members back: there is while one is not alive.
    announces: bool,
    wake_at: Option<Instant>,
}

impl Core {
    /// Starts a core with its randomness. Panics if the options contradict each other.
    pub fn start(
        now: Instant,
        local: Member,
        options: Options,
        seed: [u8; 32],
    ) -> (Self, Vec<Command>) {
        let mut random = ChaCha8Rng::from_seed(seed);
        let identity = Identity {
            node: local.node,
            incarnation: local.incarnation,
            renewal: 0,
        };
        let foca_random = ChaCha8Rng::from_seed(random.random());
        let foca = Foca::new(identity, options.foca(), foca_random, Codec);
        let mut core = Self {
            local,
            foca,
            directory: Directory::new(local),
            random,
            peers: BTreeSet::new(),
            expected_since: BTreeMap::new(),
            refused: BTreeMap::new(),
            health: BTreeMap::new(),
            exchange_turn: Vec::new(),
            timers: BTreeMap::new(),
            timers_set: 0,
            rumour_timer: None,
            announces: false,
            wake_at: None,
            options,
        };
        // Nodes that start together must not all exchange at the same moment.
        let phase = core.options.exchange_period.mul_f64(core.random.random());
        core.set_timer(now + phase, Timer::Exchange);
        let mut commands = Vec::new();
        core.ask_to_wake(&mut commands);
        (core, commands)
    }

    /// Takes an event at a time, which never runs backwards, and says what to do.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Command> {
        let mut commands = Vec::new();
        let mut outbox = Outbox::default();
        match event {
            Event::Datagram {
                from,
                incarnation,
                bytes,
            } => {
                self.on_datagram(from, incarnation, &bytes, &mut outbox, &mut commands);
            }
            Event::LinkUp(node, incarnation) => self.on_link_up(node, incarnation, &mut outbox),
            Event::LinkRefused(node, incarnation) => {
                self.on_refused(node, incarnation, &mut outbox);
            }
            Event::Peers(peers) => self.on_peers(now, peers, &mut outbox),
            Event::Tick => self.on_tick(now, &mut outbox, &mut commands),
        }
        self.take(now, outbox, &mut commands);
        if self.foca.updates_backlog() > 0
            && let Some(timer) = self.rumour_timer.take()
        {
            self.set_timer(now + RUMOUR_PERIOD, Timer::Foca(timer));
        }
        self.refresh_health(now, &mut commands);
        let is_alive = |health: &Health| health.status == Status::Alive;
        if !self.announces && !self.health.values().all(is_alive) {
            self.announces = true;
            self.set_timer(now + self.options.announce_period, Timer::Announce);
        }
        self.ask_to_wake(&mut commands);
        commands
    }

    /// The belief about every peer.
    pub fn health(&self) -> &BTreeMap<NodeId, Health> {
        &self.health
    }

    /// Publishes a value of this node under `key`; exchanges spread it.
    pub fn publish(&mut self, key: &str, value: Bytes) -> Result<(), PublishError> {
        self.directory.publish(key, value)
    }

    /// The last value known that `node` published under `key`.
    pub fn read(&self, node: NodeId, key: &str) -> Option<Bytes> {
        self.directory.read(node, key)
    }

    /// All that is known of what nodes published, this one included.
    pub fn snapshot(&self) -> BTreeMap<NodeId, Published> {
        self.directory.snapshot()
    }

    fn on_datagram(
        &mut self,
        from: NodeId,
        incarnation: Incarnation,
        bytes: &[u8],
        outbox: &mut Outbox,
        commands: &mut Vec<Command>,
    ) {
        if !self.peers.contains(&from) {
            return;
        }
        match bytes {
            [VERSION, KIND_MEMBERSHIP, datagram @ ..] => {
                let from = (from, incarnation);
                let screened = screen(datagram, from, *self.foca.identity(), &self.peers);
                let outcome =
                    screened.map(|datagram| self.foca.handle_data(&datagram, &mut *outbox));
                match outcome {
                    Ok(Ok(())) if is_ack(datagram) => self.end_wait_for(from.0, outbox),
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(from = %from.0, %error, "dropped a rumour"),
                    Err(error) => tracing::debug!(from = %from.0, %error, "dropped a rumour"),
                }
            }
            [VERSION, KIND_EXCHANGE, message @ ..] if message.len() <= EXCHANGE_BYTES_MAX => {
                match postcard::from_bytes(message) {
                    Ok(message) => {
                        let answer = self.directory.on_message(message, &self.peers);
                        commands.extend(answer.map(|answer| send_exchange(from, &answer)));
                    }
                    Err(error) => tracing::debug!(%from, %error, "dropped an exchange"),
                }
            }
            _ => tracing::debug!(%from, "dropped a datagram of an unknown form or version"),
        }
    }

    /// A probed member has answered: what foca would only find out later is told to it now, so
    /// that the node need not wake up for it.
    fn end_wait_for(&mut self, node: NodeId, outbox: &mut Outbox) {
        let waits = |_: &(Instant, u64), timer: &mut Timer| match timer {
            Timer::Foca(foca::Timer::SendIndirectProbe { probed_id, .. }) => probed_id.node == node,
            Timer::Foca(_) | Timer::Exchange | Timer::Announce => false,
        };
        let waiting: Vec<_> = self.timers.extract_if(.., waits).collect();
        for (_, timer) in waiting {
            if let Timer::Foca(timer) = timer {
                self.run_timer(timer, outbox);
            }
        }
    }

    fn run_timer(&mut self, timer: foca::Timer<Identity>, outbox: &mut Outbox) {
        if let Err(error) = self.foca.handle_timer(timer, outbox) {
            tracing::debug!(%error, "a probe cycle went wrong");
        }
    }

    fn on_link_up(&mut self, node: NodeId, incarnation: Incarnation, outbox: &mut Outbox) {
        if self
            .refused
            .get(&node)
            .is_some_and(|refused| *refused <= incarnation)
        {
            self.refused.remove(&node);
        }
        if self.peers.contains(&node) {
            self.announce(node, outbox);
        }
    }

    fn on_refused(&mut self, node: NodeId, incarnation: Incarnation, outbox: &mut Outbox) {
        if !self.peers.contains(&node) {
            return;
        }
        let refused = self.refused.entry(node).or_default();
        *refused = incarnation.max(*refused);
        // Spread it: others may have no link to be refused on.
        if let Some(member) = self.rumoured(node)
            && member.id().incarnation == incarnation
        {
            self.declare_down(&member, true, outbox);
        }
    }

    fn on_peers(&mut self, now: Instant, mut peers: BTreeSet<NodeId>, outbox: &mut Outbox) {
        peers.remove(&self.local.node);
        let removed: Vec<NodeId> = self.peers.difference(&peers).copied().collect();
        let added: Vec<NodeId> = peers.difference(&self.peers).copied().collect();
        self.peers = peers;
        for node in removed {
            // Only this node stops probing it; what others should do, the config group tells.
            if let Some(member) = self.rumoured(node) {
                self.declare_down(&member, false, outbox);
            }
            self.refused.remove(&node);
            self.expected_since.remove(&node);
        }
        self.directory.retain(&self.peers);
        for node in added {
            self.expected_since.insert(node, now);
            self.announce(node, outbox);
        }
    }

    fn on_tick(&mut self, now: Instant, outbox: &mut Outbox, commands: &mut Vec<Command>) {
        let overslept = |deadline| now.saturating_since(deadline) > self.options.probe_period;
        if self.wake_at.is_some_and(overslept) {
            self.resume_after_pause(now);
        }
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= now
        {
            match entry.remove() {
                Timer::Foca(timer) => self.run_timer(timer, outbox),
                Timer::Exchange => {
                    self.set_timer(now + self.options.exchange_period, Timer::Exchange);
                    if let Some(peer) = self.next_exchange_peer() {
                        commands.push(send_exchange(peer, &self.directory.open()));
                    }
                }
                Timer::Announce => {
                    self.announces = false;
                    let absent = |(node, health): (&NodeId, &Health)| {
                        (health.status != Status::Alive).then_some(*node)
                    };
                    for node in self.health.iter().filter_map(absent).collect::<Vec<_>>() {
                        self.announce(node, outbox);
                    }
                }
            }
        }
    }

    /// After a pause of this process the answers of others wait unread: shift every deadline, so
    /// that they are read before anyone is judged.
    fn resume_after_pause(&mut self, now: Instant) {
        let Some(earliest) = self.timers.keys().next().map(|(deadline, _)| *deadline) else {
            return;
        };
        let pause = now.saturating_since(earliest) + self.options.probe_timeout;
        tracing::info!(
            ?pause,
            "this process was paused; judgement of others is put off"
        );
        self.timers = std::mem::take(&mut self.timers)
            .into_iter()
            .map(|((deadline, order), timer)| ((deadline + pause, order), timer))
            .collect();
        for since in self.expected_since.values_mut() {
            *since = *since + pause;
        }
    }

    /// Peers in random order, each once a turn: no peer waits longer than two turns.
    fn next_exchange_peer(&mut self) -> Option<NodeId> {
        let down = |node: &NodeId, health: &BTreeMap<NodeId, Health>| {
            health
                .get(node)
                .is_none_or(|health| health.status == Status::Down)
        };
        self.exchange_turn.retain(|node| !down(node, &self.health));
        if self.exchange_turn.is_empty() {
            self.exchange_turn = self
                .peers
                .iter()
                .filter(|node| !down(node, &self.health))
                .copied()
                .collect();
            self.exchange_turn.shuffle(&mut self.random);
        }
        self.exchange_turn.pop()
    }

    fn announce(&mut self, node: NodeId, outbox: &mut Outbox) {
        if let Err(error) = self.foca.announce(Identity::address_of(node), outbox) {
            tracing::debug!(%node, %error, "could not announce this node");
        }
    }

    fn declare_down(
        &mut self,
        member: &foca::Member<Identity>,
        broadcast: bool,
        outbox: &mut Outbox,
    ) {
        let down = foca::Member::new(*member.id(), member.incarnation(), State::Down);
        if let Err(error) = self
            .foca
            .apply_many(std::iter::once(down), broadcast, outbox)
        {
            tracing::debug!(node = %member.id().node, %error, "could not note a member's end");
        }
    }

    fn rumoured(&self, node: NodeId) -> Option<foca::Member<Identity>> {
        self.foca
            .iter_membership_state()
            .find(|member| member.id().node == node)
            .cloned()
    }

    fn set_timer(&mut self, deadline: Instant, timer: Timer) {
        self.timers_set += 1;
        self.timers.insert((deadline, self.timers_set), timer);
    }

    fn take(&mut self, now: Instant, outbox: Outbox, commands: &mut Vec<Command>) {
        for (after, timer) in outbox.timers {
            match timer {
                // A node without news does not wake up to find that out.
                foca::Timer::PeriodicGossip(_) => self.rumour_timer = Some(timer),
                timer => self.set_timer(now + after, Timer::Foca(timer)),
            }
        }
        for (to, bytes) in outbox.datagrams {
            if self.peers.contains(&to) {
                commands.push(Command::Send { to, bytes });
            }
        }
    }

    fn refresh_health(&mut self, now: Instant, commands: &mut Vec<Command>) {
        let mut beliefs: BTreeMap<NodeId, (Incarnation, Status)> = BTreeMap::new();
        let patience = self.options.probe_period + self.options.suspicion;
        for (node, since) in &self.expected_since {
            let silent = now.saturating_since(*since) >= patience;
            let status = if silent {
                Status::Down
            } else {
                Status::Suspect
            };
            beliefs.insert(*node, (Incarnation(0), status));
        }
        for member in self.foca.iter_membership_state() {
            if let Some(belief) = beliefs.get_mut(&member.id().node) {
                let status = match member.state() {
                    State::Alive => Status::Alive,
                    State::Suspect => Status::Suspect,
                    State::Down => Status::Down,
                };
                *belief = (member.id().incarnation, status);
            }
        }
        let mut table = BTreeMap::new();
        for (node, (incarnation, status)) in beliefs {
            let refused = self
                .refused
                .get(&node)
                .filter(|refused| **refused >= incarnation);
            let (incarnation, status, proof) = match refused {
                Some(refused) => (*refused, Status::Down, Some(Proof::Refused)),
                None => (incarnation, status, None),
            };
            let before = self.health.get(&node);
            let unchanged = before
                .filter(|before| before.incarnation == incarnation && before.status == status);
            let since = unchanged.map_or(now, |before| before.since);
            table.insert(
                node,
                Health {
                    incarnation,
                    status,
                    since,
                    proof,
                },
            );
        }
        let nodes: BTreeSet<NodeId> = self.health.keys().chain(table.keys()).copied().collect();
        for node in nodes {
            let (before, after) = (self.health.get(&node).copied(), table.get(&node).copied());
            if before != after {
                commands.push(Command::Health(HealthChange {
                    node,
                    before,
                    after,
                }));
            }
        }
        self.health = table;
    }

    fn ask_to_wake(&mut self, commands: &mut Vec<Command>) {
        let earliest = self.timers.keys().next().map(|(deadline, _)| *deadline);
        if let Some(deadline) = earliest
            && self.wake_at != Some(deadline)
        {
            commands.push(Command::WakeAt(deadline));
        }
        self.wake_at = earliest;
    }
}

fn send_exchange(to: NodeId, message: &anti_entropy::Message) -> Command {
    let mut bytes = vec![VERSION, KIND_EXCHANGE];
    bytes.extend(postcard::to_allocvec(message).expect("plain data in memory always encodes"));
    Command::Send {
        to,
        bytes: bytes.into(),
    }
}

/// Collects what foca wants done while it handles one event.
#[derive(Default)]
struct Outbox {
    datagrams: Vec<(NodeId, Bytes)>,
    timers: Vec<(Duration, foca::Timer<Identity>)>,
}

impl foca::Runtime<Identity> for Outbox {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        match notification {
            Notification::Rejoin(identity) => {
                tracing::info!(
                    renewal = identity.renewal,
                    "declared down while alive; rejoined"
                );
            }
            Notification::Defunct => tracing::warn!("declared down; no renewal is left"),
            // The health table is compared as a whole after each event.
            Notification::MemberUp(_)
            | Notification::MemberDown(_)
            | Notification::Rename(..)
            | Notification::Active
            | Notification::Idle => {}
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        let mut bytes = BytesMut::with_capacity(2 + data.len());
        bytes.put_slice(&[VERSION, KIND_MEMBERSHIP]);
        bytes.put_slice(data);
        self.datagrams.push((to.node, bytes.freeze()));
    }

    fn submit_after(&mut self, event: foca::Timer<Identity>, after: Duration) {
        self.timers.push((after, event));
    }
}
