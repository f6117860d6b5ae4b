//! The owner's end of one slice's stream: numbering, acknowledgements, repetition. Pure.
//!
//! ```text
//!              submit                       ack(durable)
//!  operation ─────────► window ──► copies ──────────────► stable = min over required copies
//!                         ▲            │ no progress
//!                         └────────────┘ send again from durable + 1
//! ```
//!
//! Invariants: `stable` never falls; a record leaves the window only when it is stable and every
//! active copy has it; a copy is *required* from before its promotion is proposed until its
//! removal is known to be decided.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Incarnation, Instant, NodeId};
use holdfast_wire::Seq;

/// A copy that has not moved for this long is sent the window again.
const REPEAT_AFTER: Duration = Duration::from_millis(250);
/// At most this many records are repeated at a time: a slow copy is not made slower.
const REPEAT_RECORDS_MAX: usize = 64;

/// What a copy counts for in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// No write is acknowledged without it.
    Required,
    /// It gets the writes and catches up meanwhile.
    Joining,
}

/// One copy as the stream sees it.
#[derive(Clone, Debug)]
pub struct Member {
    /// The start of the node's process that takes part.
    pub incarnation: Incarnation,
    /// Number of this copy's stream.
    pub session: u64,
    /// What it counts for.
    pub role: Role,
    /// It has everything of the stream up to here.
    pub durable: Seq,
    /// Bytes free for new blocks, as of its last acknowledgement.
    pub free_bytes: u64,
    /// More was about to be free then.
    pub freeing: bool,
    /// It said that it cannot go on.
    pub failed: bool,
    active: bool,
    progress_at: Instant,
}

impl Member {
    /// For how long the copy has owed an acknowledgement.
    pub fn silent_for(&self, now: Instant) -> Duration {
        now.saturating_since(self.progress_at)
    }
}

struct Entry<T> {
    item: T,
    bytes: usize,
}

/// What the shell has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<T> {
    /// Send the record at `seq` to `to`.
    Send {
        /// Copy.
        to: NodeId,
        /// Number of the copy's stream.
        session: u64,
        /// Position.
        seq: Seq,
        /// The record.
        item: T,
    },
    /// `stable` has risen to this.
    Stable(Seq),
}

/// See the module's header. `T` is the record as the shell keeps it (cheap to clone).
pub struct Stream<T> {
    next: Seq,
    stable: Seq,
    /// Records from `next - window.len()` on.
    window: VecDeque<Entry<T>>,
    window_bytes: usize,
    members: BTreeMap<NodeId, Member>,
    /// How often a member came, went, or got another role.
    membership: u64,
}

impl<T: Clone> Stream<T> {
    /// A stream whose copies all hold it up to `last`.
    pub fn new(last: Seq) -> Self {
        Self {
            next: last.next(),
            stable: last,
            window: VecDeque::new(),
            window_bytes: 0,
            members: BTreeMap::new(),
            membership: 0,
        }
    }

    /// Position of the next record.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// Every required copy holds the stream up to here.
    pub fn stable(&self) -> Seq {
        self.stable
    }

    /// Bytes of records kept for copies that lack them.
    pub fn window_bytes(&self) -> usize {
        self.window_bytes
    }

    /// The copies that take part.
    pub fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }

    /// Changes whenever a copy came, went, or got another role.
    pub fn membership(&self) -> u64 {
        self.membership
    }

    /// Copies without which nothing is acknowledged.
    pub fn required(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members
            .iter()
            .filter(|(_, m)| m.role == Role::Required)
            .map(|(node, _)| *node)
    }

    /// Whether some copy still owes an acknowledgement.
    pub fn is_busy(&self) -> bool {
        self.members
            .values()
            .any(|member| member.active && member.durable.next() < self.next)
    }

    /// Adds a copy that holds the stream so far (`Required`), or will get it from here on
    /// (`Joining`; nothing is sent before [`Stream::activate`]).
    pub fn add(
        &mut self,
        now: Instant,
        node: NodeId,
        incarnation: Incarnation,
        session: u64,
        role: Role,
    ) {
        let member = Member {
            incarnation,
            session,
            role,
            durable: Seq(self.next.0 - 1),
            free_bytes: u64::MAX,
            freeing: false,
            failed: false,
            active: role == Role::Required,
            progress_at: now,
        };
        assert!(
            role == Role::Joining || self.window.is_empty(),
            "a required copy starts where the stream does"
        );
        self.members.insert(node, member);
        self.membership += 1;
    }

    /// Notes how much space a copy has, as it said outside the stream.
    pub fn set_free_bytes(&mut self, node: NodeId, free_bytes: u64) {
        if let Some(member) = self.members.get_mut(&node) {
            member.free_bytes = free_bytes;
        }
    }

    /// Notes whether more is about to be free on a copy, as its acknowledgement says.
    pub fn set_freeing(&mut self, node: NodeId, session: u64, freeing: bool) {
        if let Some(member) = self.members.get_mut(&node)
            && member.session == session
        {
            member.freeing = freeing;
        }
    }

    /// Starts sending to a joining copy, beginning with what it has missed since it was added.
    pub fn activate(&mut self, now: Instant, node: NodeId) -> Vec<Command<T>> {
        if let Some(member) = self.members.get_mut(&node) {
            member.active = true;
            member.progress_at = now;
        }
        self.window_from_durable(node, usize::MAX)
    }

    /// From now on nothing is acknowledged without `node`.
    pub fn require(&mut self, now: Instant, node: NodeId) {
        if let Some(member) = self.members.get_mut(&node) {
            member.role = Role::Required;
            self.membership += 1;
            member.progress_at = now;
        }
    }

    /// Forgets a copy; what it alone held up becomes stable.
    pub fn remove(&mut self, node: NodeId) -> Vec<Command<T>> {
        self.members.remove(&node);
        self.membership += 1;
        self.advance()
    }

    /// Numbers a record of `bytes` and sends it to every active copy.
    pub fn submit(&mut self, now: Instant, item: T, bytes: usize) -> (Seq, Vec<Command<T>>) {
        let seq = self.next;
        self.next = seq.next();
        let mut commands = Vec::with_capacity(self.members.len());
        for (node, member) in &mut self.members {
            if !member.active {
                continue;
            }
            if member.durable.next() == seq {
                // It owed nothing until now: its silence begins here.
                member.progress_at = now;
            }
            let (to, session, item) = (*node, member.session, item.clone());
            commands.push(Command::Send {
                to,
                session,
                seq,
                item,
            });
        }
        self.window.push_back(Entry { item, bytes });
        self.window_bytes += bytes;
        (seq, commands)
    }

    /// A copy holds its stream up to `durable`.
    pub fn on_ack(
        &mut self,
        now: Instant,
        node: NodeId,
        session: u64,
        durable: Seq,
        free_bytes: u64,
        failed: bool,
    ) -> Vec<Command<T>> {
        let Some(member) = self.members.get_mut(&node) else {
            return Vec::new();
        };
        if member.session != session || durable >= self.next {
            return Vec::new();
        }
        member.free_bytes = free_bytes;
        member.failed |= failed;
        if durable > member.durable {
            member.durable = durable;
            member.progress_at = now;
            return self.advance();
        }
        Vec::new()
    }

    /// Repeats to each copy that owes an acknowledgement for too long, oldest records first.
    pub fn on_tick(
        &mut self,
        now: Instant,
        repeated_at: &mut BTreeMap<NodeId, Instant>,
    ) -> Vec<Command<T>> {
        let next = self.next;
        let late: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(node, member)| {
                let since = repeated_at.get(node).copied().unwrap_or_default();
                member.active
                    && !planted::is_active(Bug::NeverRepeat)
                    && member.durable.next() < next
                    && now.saturating_since(member.progress_at.max(since)) >= REPEAT_AFTER
            })
            .map(|(node, _)| *node)
            .collect();
        let mut commands = Vec::new();
        for node in late {
            reach::note(Row::WindowRepeated);
            repeated_at.insert(node, now);
            commands.extend(self.window_from_durable(node, REPEAT_RECORDS_MAX));
        }
        commands
    }

    fn window_from_durable(&self, node: NodeId, limit: usize) -> Vec<Command<T>> {
        let Some(member) = self.members.get(&node) else {
            return Vec::new();
        };
        let first = self.next.0 - self.window.len() as u64;
        let from = member.durable.next().0.max(first);
        (from..self.next.0)
            .take(limit)
            .map(|seq| Command::Send {
                to: node,
                session: member.session,
                seq: Seq(seq),
                item: self.window[(seq - first) as usize].item.clone(),
            })
            .collect()
    }

    fn advance(&mut self) -> Vec<Command<T>> {
        let required = self
            .members
            .values()
            .filter(|member| member.role == Role::Required);
        let durable = required.map(|member| member.durable);
        let stable = if planted::is_active(Bug::AcknowledgeFirstCopy) {
            durable.max()
        } else {
            durable.min()
        }
        .unwrap_or(self.stable);
        let mut commands = Vec::new();
        if stable > self.stable {
            self.stable = stable;
            commands.push(Command::Stable(stable));
        }
        let slowest = self.members.values().map(|member| member.durable).min();
        let keep_after = slowest.unwrap_or(self.stable).min(self.stable);
        while self.next.0 - self.window.len() as u64 <= keep_after.0 {
            let Some(entry) = self.window.pop_front() else {
                break;
            };
            self.window_bytes -= entry.bytes;
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    fn stream() -> Stream<&'static str> {
        let mut stream = Stream::new(Seq(10));
        for (node, session) in [(A, 71), (B, 72)] {
            stream.add(
                Instant::default(),
                node,
                Incarnation(1),
                session,
                Role::Required,
            );
        }
        stream
    }

    fn send(to: NodeId, session: u64, seq: u64, item: &'static str) -> Command<&'static str> {
        Command::Send {
            to,
            session,
            seq: Seq(seq),
            item,
        }
    }

    fn ack(
        stream: &mut Stream<&'static str>,
        node: NodeId,
        session: u64,
        durable: u64,
    ) -> Vec<Command<&'static str>> {
        stream.on_ack(Instant::default(), node, session, Seq(durable), 0, false)
    }

    #[test]
    fn a_record_is_stable_only_when_every_required_copy_has_it() {
        let mut stream = stream();
        let (seq, commands) = stream.submit(Instant::default(), "w", 4096);
        assert_eq!(seq, Seq(11));
        assert_eq!(commands, [send(A, 71, 11, "w"), send(B, 72, 11, "w")]);
        assert_eq!(ack(&mut stream, A, 71, 11), []);
        assert_eq!(ack(&mut stream, B, 72, 11), [Command::Stable(Seq(11))]);
        assert_eq!(stream.window_bytes(), 0);
    }

    #[test]
    fn acknowledgements_of_another_session_or_of_the_future_are_ignored() {
        let mut stream = stream();
        stream.submit(Instant::default(), "w", 1);
        assert_eq!(ack(&mut stream, A, 71, 11), []);
        assert_eq!(ack(&mut stream, B, 71, 11), []);
        assert_eq!(ack(&mut stream, B, 72, 12), []);
        assert_eq!(stream.stable(), Seq(10));
    }

    #[test]
    fn removing_the_copy_that_held_up_makes_the_rest_stable() {
        let mut stream = stream();
        stream.submit(Instant::default(), "w", 1);
        ack(&mut stream, A, 71, 11);
        assert_eq!(stream.remove(B), [Command::Stable(Seq(11))]);
    }

    #[test]
    fn without_any_required_copy_nothing_becomes_stable() {
        let mut stream = stream();
        stream.submit(Instant::default(), "w", 1);
        stream.remove(A);
        assert_eq!(stream.remove(B), []);
        assert_eq!(stream.stable(), Seq(10));
    }

    #[test]
    fn a_joining_copy_gets_what_came_since_and_holds_nothing_up_until_required() {
        let mut stream = stream();
        stream.add(Instant::default(), C, Incarnation(4), 73, Role::Joining);
        let (_, commands) = stream.submit(Instant::default(), "x", 1);
        assert_eq!(commands.len(), 2, "nothing is sent before it is active");
        ack(&mut stream, A, 71, 11);
        assert_eq!(ack(&mut stream, B, 72, 11), [Command::Stable(Seq(11))]);
        assert_eq!(
            stream.activate(Instant::default(), C),
            [send(C, 73, 11, "x")]
        );
        stream.require(Instant::default(), C);
        stream.submit(Instant::default(), "y", 1);
        ack(&mut stream, A, 71, 12);
        assert_eq!(ack(&mut stream, B, 72, 12), []);
        assert_eq!(ack(&mut stream, C, 73, 12), [Command::Stable(Seq(12))]);
    }

    #[test]
    fn a_silent_copy_is_sent_its_window_again_and_no_faster_than_the_interval() {
        let mut stream = stream();
        stream.submit(Instant::default(), "w", 1);
        ack(&mut stream, A, 71, 11);
        let mut repeated = BTreeMap::new();
        let at = |ms| Instant::default() + Duration::from_millis(ms);
        assert_eq!(stream.on_tick(at(100), &mut repeated), []);
        assert_eq!(
            stream.on_tick(at(300), &mut repeated),
            [send(B, 72, 11, "w")]
        );
        assert_eq!(stream.on_tick(at(400), &mut repeated), []);
        assert_eq!(
            stream.on_tick(at(600), &mut repeated),
            [send(B, 72, 11, "w")]
        );
    }
}
