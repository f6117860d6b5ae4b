//! One established connection to a peer: a queue of frames to send, and the task that moves bytes
//! in both directions.
//!
//! Promises: frames leave in the order in which they were queued; what was queued since the task
//! last ran leaves in as few system calls as the socket takes; a peer that stays silent for
//! [`SILENT_TICKS_MAX`] ticks loses the link; after [`Link::close`] nothing more is delivered.

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
use tokio::time::{Sleep, sleep_until};

use super::executor::shared_wake_after;
use super::frame::{self, FRAME_BYTES_MAX, FrameError, HEAD_BYTES, Kind, LinkRefusal};
use super::problem::LinkProblem;
use super::stream::FrameStream;
use crate::links::{Frame, Incarnation};

/// Frames queued for one peer, in bytes: a peer that does not take its data must not eat the
/// memory of all. One frame always fits into an empty queue.
pub(super) const QUEUE_BYTES_MAX: usize = 64 << 20;
/// What a queued frame costs besides its content.
const FRAME_OVERHEAD_BYTES: usize = 128;
/// Ticks end at the node's shared wake-ups, so this is 256 ms in practice.
const TICK: Duration = Duration::from_millis(224);
/// A link that sent nothing for so many ticks sends a ping: a live peer is heard twice before it
/// would count as silent, and most links carry enough of gossip to need none.
const QUIET_TICKS_MAX: u32 = 4;
/// Whole ticks without a byte after which the peer counts as silent: 2 s to 2.3 s. What is to be
/// done then, for a cut link or a silent node, has to fit into the rest of 3 s.
const SILENT_TICKS_MAX: u32 = 8;
const _: () = assert!(QUIET_TICKS_MAX * 2 <= SILENT_TICKS_MAX);
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
            tick: Box::pin(sleep_until(shared_wake_after(TICK))),
            heard: true,
            spoke: false,
            quiet_ticks: 0,
            silent_ticks: 0,
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
    /// Whether bytes came in, or went out, since the last tick.
    heard: bool,
    spoke: bool,
    silent_ticks: u32,
    quiet_ticks: u32,
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
            // Counted from now: a process that was stopped for a while must not take the ticks
            // that it missed for silence.
            self.tick.as_mut().reset(shared_wake_after(TICK));
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
            self.heard = true;
        }
        context.waker().wake_by_ref();
        Ok(())
    }

    fn tick(&mut self) -> Result<(), LinkProblem> {
        self.silent_ticks = if self.heard { 0 } else { self.silent_ticks + 1 };
        if self.silent_ticks >= SILENT_TICKS_MAX {
            return Err(LinkProblem::TimedOut);
        }
        self.quiet_ticks = if self.spoke { 0 } else { self.quiet_ticks + 1 };
        if self.quiet_ticks >= QUIET_TICKS_MAX && self.staged.is_empty() {
            self.staged.push_back(frame::encode(Kind::Ping, &[]));
        }
        (self.heard, self.spoke) = (false, false);
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
            (self.spoke, self.unflushed) = (true, true);
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
