//! One established connection to a peer: a queue of frames to send, and the task that moves bytes
//! in both directions.
//!
//! Promises: frames leave in the order in which they were queued; what was queued since the task
//! last ran leaves in as few system calls as the socket takes; a peer that stays silent for
//! [`SILENT_AFTER`] loses the link; after [`Link::close`] nothing more is delivered.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncBufRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

use super::executor::{RARE_WAKE, rare_wake_after, shared_wake_after};
use super::frame::{self, FRAME_BYTES_MAX, FrameError, HEAD_BYTES, Kind, LinkRefusal};
use super::problem::LinkProblem;
use super::stream::FrameStream;
use crate::links::{Frame, Incarnation};

/// Frames queued for one peer, in bytes: a peer that does not take its data must not eat the
/// memory of all. One frame always fits into an empty queue.
pub(super) const QUEUE_BYTES_MAX: usize = 64 << 20;
/// What a queued frame costs besides its content.
const FRAME_OVERHEAD_BYTES: usize = 128;
/// All links of a node look at the same moments, its rare wake-ups.
const TICK: Duration = RARE_WAKE;
/// A link that has sent nothing for so long when it looks sends a ping. So a live peer is heard at
/// least every 1.6 s, and most links carry enough of gossip to need none.
const QUIET_AFTER: Duration = Duration::from_millis(1020);
/// Without a byte for so long, at the next shared wake-up, the peer counts as silent. What is to be
/// done then, for a cut link or a silent node, has to fit into the rest of 3 s.
const SILENT_AFTER: Duration = Duration::from_millis(2050);
const _: () = assert!(
    (QUIET_AFTER.as_millis() + TICK.as_millis()) * 4 <= SILENT_AFTER.as_millis() * 3,
    "a ping has time to arrive, also if TCP has to send it once more"
);
/// Frames taken from the queue at once. Several TLS records, so that small frames share them.
const STAGE_BYTES: usize = 256 << 10;
/// Smaller parts are copied together; larger ones are passed on as they are.
const COPY_BYTES_MAX: usize = 2048;
const SLICES_MAX: usize = 32;
/// Records taken in before the other direction has its turn.
const READS_PER_TURN: usize = 32;

/// The sending end of an established connection.
pub(super) struct Link {
    pub(super) incarnation: Incarnation,
    queue: RefCell<VecDeque<Frame>>,
    queued_bytes: Cell<usize>,
    closing: RefCell<Option<LinkProblem>>,
    waker: RefCell<Option<Waker>>,
}

impl Link {
    pub(super) fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            queue: RefCell::default(),
            queued_bytes: Cell::default(),
            closing: RefCell::default(),
            waker: RefCell::default(),
        }
    }

    /// Queues a frame; closes the link if the peer does not take what it was sent before.
    pub(super) fn send(&self, frame: Frame) {
        if self.closing.borrow().is_some() {
            return;
        }
        let bytes = self.queued_bytes.get() + cost(&frame);
        if bytes > QUEUE_BYTES_MAX && !self.queue.borrow().is_empty() {
            return self.close(LinkProblem::Overflow(bytes));
        }
        self.queued_bytes.set(bytes);
        self.queue.borrow_mut().push_back(frame);
        self.wake();
    }

    /// Ends [`Link::run`] with this problem, unless it has another one already.
    pub(super) fn close(&self, problem: LinkProblem) {
        self.closing.borrow_mut().get_or_insert(problem);
        self.wake();
    }

    /// Moves bytes until the link breaks: `first` before anything else, then the queue.
    pub(super) async fn run(
        self: Rc<Self>,
        mut stream: FrameStream,
        first: Option<Bytes>,
        mut deliver: impl FnMut(Frame),
    ) -> LinkProblem {
        stream.decoder.set_limit(FRAME_BYTES_MAX);
        let mut pump = Pump {
            link: &self,
            stream,
            staged: first.into_iter().collect(),
            unflushed: false,
            tick: Box::pin(sleep_until(rare_wake_after(TICK / 2))),
            heard: Instant::now(),
            spoke: Instant::now(),
        };
        let end = poll_fn(|context| match pump.turn(context, &mut deliver) {
            Ok(()) => Poll::Pending,
            Err(problem) => Poll::Ready(problem),
        });
        end.await
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Both directions of one connection.
struct Pump<'a> {
    link: &'a Link,
    stream: FrameStream,
    /// Bytes on their way into TLS.
    staged: VecDeque<Bytes>,
    unflushed: bool,
    tick: Pin<Box<Sleep>>,
    /// When bytes came in, and went out, last.
    heard: Instant,
    spoke: Instant,
}

impl Pump<'_> {
    /// Does what can be done now and leaves the task's waker wherever more may come from.
    fn turn(
        &mut self,
        context: &mut Context<'_>,
        deliver: &mut impl FnMut(Frame),
    ) -> Result<(), LinkProblem> {
        if let Some(problem) = self.link.closing.borrow().clone() {
            return Err(problem);
        }
        *self.link.waker.borrow_mut() = Some(context.waker().clone());
        // Reading comes before the tick: bytes that waited while this process was stopped count.
        self.read(context, deliver)?;
        if self.tick.as_mut().poll(context).is_ready() {
            self.tick()?;
            if self.tick.as_mut().poll(context).is_ready() {
                context.waker().wake_by_ref();
            }
        }
        self.write(context)
    }

    fn read(
        &mut self,
        context: &mut Context<'_>,
        deliver: &mut impl FnMut(Frame),
    ) -> Result<(), LinkProblem> {
        for _ in 0..READS_PER_TURN {
            // Frames first: the greeting may have read further than its own end.
            while let Some((kind, frame)) = self.stream.decoder.next()? {
                match kind {
                    Kind::Data => deliver(frame),
                    Kind::Ping => {}
                    Kind::Refuse => {
                        let refusal = LinkRefusal::decode(&frame.header)?;
                        return Err(LinkProblem::RefusedByPeer(refusal));
                    }
                    Kind::Hello | Kind::Start | Kind::JoinRequest | Kind::JoinReply => {
                        return Err(FrameError::Kind(kind as u8).into());
                    }
                }
            }
            let len = match Pin::new(&mut self.stream.tls).poll_fill_buf(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Ready(Ok([])) => return Err(LinkProblem::Closed),
                Poll::Ready(Ok(bytes)) => {
                    self.stream.decoder.extend(bytes);
                    bytes.len()
                }
            };
            Pin::new(&mut self.stream.tls).consume(len);
            self.heard = Instant::now();
        }
        context.waker().wake_by_ref();
        Ok(())
    }

    /// Looks whether the peer is silent, and whether this end is, and when to look again.
    fn tick(&mut self) -> Result<(), LinkProblem> {
        let now = Instant::now();
        // A process that was stopped for a while must not take that for silence.
        let late = now.saturating_duration_since(self.tick.deadline());
        if late > TICK {
            self.heard += late;
        }
        let silence = now.saturating_duration_since(self.heard);
        if silence >= SILENT_AFTER {
            return Err(LinkProblem::TimedOut);
        }
        if now.saturating_duration_since(self.spoke) >= QUIET_AFTER && self.staged.is_empty() {
            self.staged.push_back(frame::encode(Kind::Ping, &[]));
        }
        let usual = rare_wake_after(TICK / 2);
        let end = shared_wake_after(SILENT_AFTER - silence);
        self.tick.as_mut().reset(usual.min(end));
        Ok(())
    }

    fn write(&mut self, context: &mut Context<'_>) -> Result<(), LinkProblem> {
        loop {
            if self.staged.is_empty() {
                self.stage();
            }
            if self.staged.is_empty() {
                break;
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, bytes) in slices.iter_mut().zip(&self.staged) {
                *slice = IoSlice::new(bytes);
                count += 1;
            }
            let tls = Pin::new(&mut self.stream.tls);
            let mut written = match tls.poll_write_vectored(context, &slices[..count]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(outcome) => outcome?,
            };
            (self.spoke, self.unflushed) = (Instant::now(), true);
            while let Some(first) = self.staged.front_mut() {
                if written < first.len() {
                    first.advance(written);
                    break;
                }
                written -= first.len();
                self.staged.pop_front();
            }
        }
        if self.unflushed
            && let Poll::Ready(outcome) = Pin::new(&mut self.stream.tls).poll_flush(context)
        {
            outcome?;
            self.unflushed = false;
        }
        Ok(())
    }

    /// Takes frames from the queue, small parts copied together.
    fn stage(&mut self) {
        let mut queue = self.link.queue.borrow_mut();
        let mut small = BytesMut::new();
        let mut bytes = 0;
        while bytes < STAGE_BYTES
            && let Some(frame) = queue.pop_front()
        {
            self.link
                .queued_bytes
                .update(|queued| queued - cost(&frame));
            bytes += HEAD_BYTES + frame.header.len() + frame.payload.len();
            small.put_slice(&frame::head(Kind::Data, &frame.header, &frame.payload));
            for part in [frame.header, frame.payload] {
                if part.len() <= COPY_BYTES_MAX {
                    small.put_slice(&part);
                } else {
                    self.staged.extend([small.split().freeze(), part]);
                }
            }
        }
        if !small.is_empty() {
            self.staged.push_back(small.freeze());
        }
    }
}

fn cost(frame: &Frame) -> usize {
    frame.header.len() + frame.payload.len() + FRAME_OVERHEAD_BYTES
}
