//! The owner's state of one slice.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use holdfast_replica::stream::{Command, Role, Stream};
use holdfast_runtime::{Instant, NodeId};
use holdfast_store::Record;
use holdfast_wire::{Seq, SliceKey};
use tokio::sync::oneshot;

use super::history::SliceHistory;
use super::locks::RangeLocks;
use super::paths::must_be_shown;

/// Writes no further apart than this count as sequential: what a host has under way at once.
const SEQUENTIAL_BLOCKS: u32 = 4096;

/// What a copy was last told about the stable position.
struct Told {
    session: u64,
    stable: Seq,
    /// It has answered. Until then, or until the request fails, the answer is on its way.
    heard: bool,
}

/// A record that is ordered and not stable yet.
struct Unsettled {
    seq: Seq,
    /// Its blocks: first, and first after.
    range: (u32, u32),
    /// When the path that it came by was last known to be held.
    held_at: Instant,
}

/// See the module's header.
pub(crate) struct Slice {
    pub(crate) key: SliceKey,
    pub(crate) stream: Stream<Rc<Record>>,
    pub(crate) locks: RangeLocks,
    /// When each copy was last sent its window again.
    pub(crate) repeated_at: BTreeMap<NodeId, Instant>,
    told: BTreeMap<NodeId, Told>,
    /// Copies whose promotion is proposed and not decided: required until it is.
    pub(crate) promoting: Vec<NodeId>,
    /// The copies that the table counts as required here.
    pub(super) counted: Vec<NodeId>,
    pub(crate) history: SliceHistory,
    /// Where the last write ended, in blocks.
    last_end: u32,
    waiters: BTreeMap<Seq, Vec<oneshot::Sender<()>>>,
    unsettled: VecDeque<Unsettled>,
}

impl Slice {
    /// A slice whose copies are identical up to `last`.
    pub(crate) fn new(key: SliceKey, last: Seq, history: SliceHistory) -> Self {
        Self {
            key,
            stream: Stream::new(last),
            locks: RangeLocks::default(),
            repeated_at: BTreeMap::new(),
            told: BTreeMap::new(),
            promoting: Vec::new(),
            counted: Vec::new(),
            history,
            last_end: 0,
            waiters: BTreeMap::new(),
            unsettled: VecDeque::new(),
        }
    }

    /// A copy knows already that everything up to the stable position is stable.
    pub(crate) fn note_told(&mut self, node: NodeId, session: u64) {
        let told = Told {
            session,
            stable: self.stream.stable(),
            heard: true,
        };
        self.told.insert(node, told);
    }

    /// A write of these blocks, of `blocks` in the slice. Whether it looks like the end of a
    /// sequential fill: near where the one before it ended, in the last quarter of the slice.
    pub(crate) fn nears_its_end(&mut self, (first, end): (u32, u32), blocks: u32) -> bool {
        let last_end = std::mem::replace(&mut self.last_end, end);
        first.abs_diff(last_end) <= SEQUENTIAL_BLOCKS && last_end.min(first) > blocks / 4 * 3
    }

    /// A record takes its place in the stream.
    pub(crate) fn note_unsettled(&mut self, seq: Seq, range: (u32, u32), held_at: Instant) {
        let unsettled = Unsettled {
            seq,
            range,
            held_at,
        };
        self.unsettled.push_back(unsettled);
    }

    /// The last record of these blocks that a read at this moment must not miss, though it is
    /// not stable yet (see the module `paths`).
    pub(crate) fn to_be_shown(&self, now: Instant, (first, end): (u32, u32)) -> Option<Seq> {
        let mut latest_first = self.unsettled.iter().rev();
        let found = latest_first.find(|record| {
            record.range.0 < end && first < record.range.1 && must_be_shown(now, record.held_at)
        });
        found.map(|record| record.seq)
    }

    /// Where the whole stable history is: the copies in sync. One that is being promoted counts
    /// for acknowledgements and not yet for reads.
    pub(crate) fn sources(&self) -> Vec<NodeId> {
        let promoted = |node: &NodeId| !self.promoting.contains(node);
        self.stream.required().filter(promoted).collect()
    }

    /// Changes whenever a copy came, went, got another role, or its promotion was decided.
    pub(super) fn membership(&self) -> (u64, usize) {
        (self.stream.membership(), self.promoting.len())
    }

    /// Whether the copy on `node` is one of [`Self::sources`].
    pub(crate) fn is_source(&self, node: NodeId) -> bool {
        let member = self.stream.members().get(&node);
        let is_required = member.is_some_and(|member| member.role == Role::Required);
        is_required && !self.promoting.contains(&node)
    }

    /// The same without one node's copy.
    pub(crate) fn sources_but(&self, node: NodeId) -> Vec<NodeId> {
        let mut sources = self.sources();
        sources.retain(|source| *source != node);
        sources
    }

    /// Whether some copy that counts has too little space for new blocks.
    pub(crate) fn is_short(&self) -> bool {
        self.stream
            .members()
            .values()
            .any(|m| m.role == Role::Required && m.free_bytes == 0)
    }

    /// Whether every copy that counts and has too little space is about to have more.
    pub(crate) fn gets_space(&self) -> bool {
        let mut members = self.stream.members().values();
        members.all(|m| m.role != Role::Required || m.free_bytes > 0 || m.freeing)
    }

    /// Resolves when `seq` is stable; an error says that the owner closed first.
    pub(crate) fn when_stable(&mut self, seq: Seq) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        if seq <= self.stream.stable() {
            let _ = sender.send(());
        } else {
            self.waiters.entry(seq).or_default().push(sender);
        }
        receiver
    }

    /// Wakes whoever waits for a position up to `stable`.
    pub(crate) fn wake_through(&mut self, stable: Seq) {
        while self
            .unsettled
            .front()
            .is_some_and(|record| record.seq <= stable)
        {
            self.unsettled.pop_front();
        }
        while let Some(entry) = self.waiters.first_entry() {
            if *entry.key() > stable {
                break;
            }
            for waiter in entry.remove() {
                let _ = waiter.send(());
            }
        }
    }

    /// Wakes everybody with an error.
    pub(crate) fn interrupt(&mut self) {
        self.waiters.clear();
    }

    /// The copies, with their sessions, that have to be told the stable position now; they
    /// count as asked from here on. None while writes are under way: they carry it themselves.
    pub(crate) fn begin_telling(&mut self) -> Vec<(NodeId, u64)> {
        let stable = self.stream.stable();
        if self.stream.is_busy() || stable == Seq(0) {
            return Vec::new();
        }
        let mut untold = Vec::new();
        for (node, member) in self.stream.members() {
            let session = member.session;
            let is_asked = |told: &Told| told.session == session && told.stable == stable;
            if !self.told.get(node).is_some_and(is_asked) {
                let told = Told {
                    session,
                    stable,
                    heard: false,
                };
                self.told.insert(*node, told);
                untold.push((*node, session));
            }
        }
        untold
    }

    /// A request of [`Slice::begin_telling`] ended. One that failed is made again: without it
    /// the copy would keep its last records in the journal for as long as nobody writes.
    pub(crate) fn end_telling(&mut self, node: NodeId, session: u64, stable: Seq, heard: bool) {
        let Some(told) = self.told.get_mut(&node) else {
            return;
        };
        if told.session != session || told.stable != stable {
            return;
        }
        if heard {
            told.heard = true;
        } else {
            self.told.remove(&node);
        }
    }

    /// Whether every copy has the whole stream and is known to know the stable position.
    pub(crate) fn is_settled(&self) -> bool {
        let stable = self.stream.stable();
        let mut members = self.stream.members().iter();
        let all_know = members.all(|(node, member)| {
            self.told.get(node).is_some_and(|told| {
                told.heard && told.session == member.session && told.stable == stable
            })
        });
        !self.stream.is_busy() && (stable == Seq(0) || all_know)
    }

    /// Splits off the sends, after acting on the rest.
    pub(crate) fn absorb(&mut self, commands: Vec<Command<Rc<Record>>>) -> Vec<Outgoing> {
        let mut outgoing = Vec::with_capacity(commands.len());
        for command in commands {
            match command {
                Command::Send {
                    to,
                    session,
                    seq: _,
                    item,
                } => {
                    outgoing.push(Outgoing {
                        to,
                        session,
                        record: item,
                    });
                }
                Command::Stable(stable) => self.wake_through(stable),
            }
        }
        outgoing
    }
}

/// A record on its way to a copy.
pub(crate) struct Outgoing {
    pub(crate) to: NodeId,
    pub(crate) session: u64,
    pub(crate) record: Rc<Record>,
}

#[cfg(test)]
mod tests {
    use holdfast_runtime::Incarnation;
    use holdfast_store::{Body, OperationId};
    use holdfast_wire::View;

    use super::super::history::Memory;
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const KEY: SliceKey = SliceKey {
        volume: 1,
        slice: 0,
    };

    fn idle_slice(last: u64) -> Slice {
        let mut slice = Slice::new(KEY, Seq(last), SliceHistory::new(Memory::of_nothing(), 16));
        for (node, session) in [(A, 71), (B, 72)] {
            let now = Instant::default();
            let role = Role::Required;
            slice.stream.add(now, node, Incarnation(1), session, role);
        }
        slice
    }

    fn write(slice: &mut Slice) {
        let record = Record {
            slice: KEY,
            view: View(1),
            seq: slice.stream.next(),
            stable: slice.stream.stable(),
            operation: OperationId::default(),
            body: Body::Nothing,
        };
        slice.stream.submit(Instant::default(), Rc::new(record), 0);
    }

    fn acknowledge(slice: &mut Slice, node: NodeId, session: u64, durable: u64) {
        let (now, durable) = (Instant::default(), Seq(durable));
        slice.stream.on_ack(now, node, session, durable, 1, false);
    }

    #[test]
    fn an_idle_copy_that_did_not_hear_the_stable_position_is_told_again() {
        let mut slice = idle_slice(10);
        assert_eq!(slice.begin_telling(), [(A, 71), (B, 72)]);
        assert_eq!(slice.begin_telling(), [], "the answers are on their way");
        slice.end_telling(A, 71, Seq(10), true);
        slice.end_telling(B, 72, Seq(10), false);
        assert!(!slice.is_settled());
        assert_eq!(slice.begin_telling(), [(B, 72)]);
        slice.end_telling(B, 72, Seq(10), true);
        assert!(slice.is_settled());
        assert_eq!(slice.begin_telling(), []);
    }

    #[test]
    fn each_newer_stable_position_is_told_once_the_stream_is_idle() {
        let mut slice = idle_slice(10);
        slice.begin_telling();
        write(&mut slice);
        assert_eq!(slice.begin_telling(), [], "the next write tells it");
        acknowledge(&mut slice, A, 71, 11);
        acknowledge(&mut slice, B, 72, 11);
        assert_eq!(slice.begin_telling(), [(A, 71), (B, 72)]);
        slice.end_telling(A, 71, Seq(10), true);
        slice.end_telling(B, 72, Seq(11), true);
        assert!(!slice.is_settled(), "an answer about an older position");
    }

    #[test]
    fn a_copy_that_begins_a_new_stream_is_told_anew() {
        let mut slice = idle_slice(10);
        for (node, session) in slice.begin_telling() {
            slice.end_telling(node, session, Seq(10), true);
        }
        slice.stream.remove(B);
        assert!(slice.is_settled());
        let (now, role) = (Instant::default(), Role::Joining);
        slice.stream.add(now, B, Incarnation(2), 73, role);
        assert!(!slice.is_settled());
        assert_eq!(slice.begin_telling(), [(B, 73)]);
    }

    #[test]
    fn there_is_nothing_to_tell_before_the_first_write() {
        let mut slice = idle_slice(0);
        assert_eq!(slice.begin_telling(), []);
        assert!(slice.is_settled());
    }

    #[test]
    fn the_end_of_a_sequential_fill_is_told_from_single_writes_there() {
        let mut slice = idle_slice(0);
        let blocks = 1 << 18;
        assert!(
            !slice.nears_its_end((250_000, 250_001), blocks),
            "a single one"
        );
        assert!(slice.nears_its_end((250_001, 250_257), blocks));
        assert!(
            slice.nears_its_end((250_300, 250_400), blocks),
            "a little out of order"
        );
        assert!(!slice.nears_its_end((10, 20), blocks));
        assert!(!slice.nears_its_end((20, 30), blocks), "far from the end");
    }
}
