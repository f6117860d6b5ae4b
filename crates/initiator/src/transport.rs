//! The bytes between engine and socket: one task reads, one writes.
//!
//! Invariants
//! - The session fails exactly once, with one reason; from then on no request is accepted and
//!   every outstanding one has ended.
//! - What was queued while the writer slept goes out in as few system calls as possible.
//! - A connection that is reset ([`Transport::reset`]) sends nothing more: what waited in this
//!   machine's socket is thrown away with it.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::engine::{Engine, lost};
use crate::error::{Error, LostReason};
use crate::exchange::{Notice, Reply, Request, Token};
use crate::login::{Login, Outcome, Purpose, Step};
use crate::options::SessionOptions;
use crate::pdu::{self, Decoder, Digests, Pdu};
use crate::session::Health;

/// Room for received bytes to keep ready; what a burst of small answers needs, and enough that a
/// long Data-In takes few calls.
const READ_RESERVE: usize = 128 * 1024;
/// Gathered output beyond this goes out before more is encoded.
const WRITE_BATCH: usize = 256 * 1024;

type Done = oneshot::Sender<Result<Reply, Error>>;

impl Token for Done {
    fn is_abandoned(&self) -> bool {
        self.is_closed()
    }
}

/// What login left behind.
pub(crate) enum LoggedIn {
    Ready {
        stream: TcpStream,
        decoder: Decoder,
        outcome: Outcome,
    },
    Redirected(String),
}

/// Connects and logs in, without a time limit of its own.
pub(crate) async fn log_in(
    portal: SocketAddr,
    options: &SessionOptions,
    purpose: &Purpose,
) -> Result<LoggedIn, Error> {
    let refused = |error: io::Error| Error::Connect {
        portal,
        kind: error.kind(),
    };
    let mut stream = TcpStream::connect(portal).await.map_err(refused)?;
    stream.set_nodelay(true).map_err(refused)?;
    let mut decoder = Decoder::new(options.max_receive_segment.max(8192));
    let (mut login, mut next) = Login::start(options, purpose.clone())?;
    let mut wire = Vec::new();
    loop {
        wire.clear();
        let direct = pdu::encode(&next, Digests::default(), &mut wire);
        assert!(direct.is_none(), "login text is short");
        stream.write_all(&wire).await.map_err(io_lost)?;
        let answer = receive(&mut stream, &mut decoder).await?;
        match login.handle(&answer)? {
            Step::Send(pdu) => next = pdu,
            Step::Redirect(address) => return Ok(LoggedIn::Redirected(address)),
            Step::Done(outcome) => {
                let agreed = &outcome.negotiated;
                decoder.digests = Digests {
                    header: agreed.header_digest,
                    data: agreed.data_digest,
                };
                decoder.data_limit = options.max_receive_segment;
                return Ok(LoggedIn::Ready {
                    stream,
                    decoder,
                    outcome,
                });
            }
        }
    }
}

/// A session's engine and its connection to the two tasks.
pub(crate) struct Transport {
    engine: RefCell<Engine<Done>>,
    output_ready: Notify,
    health: watch::Sender<Health>,
    tasks: RefCell<Vec<JoinHandle<()>>>,
    closing: Rc<Cell<Closing>>,
    last_answer: Cell<Instant>,
}

/// How the socket goes when the session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// The kernel goes on sending what was written, then says that it was all.
    Close,
    /// The kernel throws away what was not sent and says RST.
    Reset,
}

/// The reading half, which knows how to go.
struct Input {
    half: OwnedReadHalf,
    closing: Rc<Cell<Closing>>,
}

impl Drop for Input {
    fn drop(&mut self) {
        if self.closing.get() == Closing::Reset {
            // Refused only for a socket that is no socket any more.
            let _ = self.half.as_ref().set_zero_linger();
        }
    }
}

/// The writing half, which knows how to go.
struct Output {
    half: Option<OwnedWriteHalf>,
    closing: Rc<Cell<Closing>>,
}

impl Drop for Output {
    fn drop(&mut self) {
        let Some(half) = self.half.take() else { return };
        match self.closing.get() {
            Closing::Close => drop(half),
            // Dropped, it would say that all has been sent.
            Closing::Reset => {
                let _ = half.as_ref().set_zero_linger();
                half.forget();
            }
        }
    }
}

impl Transport {
    /// Starts the two tasks. Needs a `LocalSet` around it.
    pub(crate) fn start(
        stream: TcpStream,
        decoder: Decoder,
        outcome: Outcome,
        queue_depth: usize,
    ) -> Rc<Self> {
        let digests = decoder.digests;
        let transport = Rc::new(Self {
            engine: RefCell::new(Engine::new(outcome, queue_depth)),
            output_ready: Notify::new(),
            health: watch::Sender::new(Health::Good),
            tasks: RefCell::default(),
            closing: Rc::new(Cell::new(Closing::Close)),
            last_answer: Cell::new(Instant::now()),
        });
        let (input, output) = stream.into_split();
        let input = Input {
            half: input,
            closing: Rc::clone(&transport.closing),
        };
        let output = Output {
            half: Some(output),
            closing: Rc::clone(&transport.closing),
        };
        let reader = tokio::task::spawn_local(Rc::clone(&transport).read_all(input, decoder));
        let writer = tokio::task::spawn_local(Rc::clone(&transport).write_all(output, digests));
        *transport.tasks.borrow_mut() = vec![reader, writer];
        transport
    }

    /// Sends a request and waits for its answer. Dropping the future before the request was sent
    /// withdraws it; later the answer is discarded.
    pub(crate) async fn ask(&self, request: Request) -> Result<Reply, Error> {
        if let Health::Lost(error) = &*self.health.borrow() {
            return Err(error.clone());
        }
        let (token, answer) = oneshot::channel();
        self.engine
            .borrow_mut()
            .submit(token, request, Instant::now());
        self.output_ready.notify_one();
        answer.await.unwrap_or(Err(lost(LostReason::ClosedHere)))
    }

    /// Ends the session: outstanding requests get `error`, the connection closes.
    pub(crate) fn fail(&self, error: Error) {
        let is_first = self.health.send_if_modified(|health| {
            let is_first = !matches!(health, Health::Lost(_));
            if is_first {
                *health = Health::Lost(error.clone());
            }
            is_first
        });
        if is_first {
            tracing::debug!(%error, "session ended");
            self.engine.borrow_mut().fail(&error);
            self.deliver(&mut Vec::new());
            self.tasks
                .borrow_mut()
                .drain(..)
                .for_each(|task| task.abort());
        }
    }

    /// Ends the session with a TCP reset; when this returns, it was sent.
    pub(crate) async fn reset(&self, error: Error) {
        self.closing.set(Closing::Reset);
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        self.fail(error);
        for task in tasks {
            task.abort();
            // It was aborted, or had ended before: either way its half is closed.
            let _ = task.await;
        }
    }

    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.engine.borrow().oldest()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.engine.borrow().is_idle()
    }

    pub(crate) fn last_answer(&self) -> Instant {
        self.last_answer.get()
    }

    async fn read_all(self: Rc<Self>, mut input: Input, mut decoder: Decoder) {
        let mut completed = Vec::new();
        loop {
            // Login may have left bytes behind, so decode first.
            if let Err(error) = self.decode_all(&mut decoder) {
                return self.fail(error);
            }
            self.deliver(&mut completed);
            match fill(&mut input.half, &mut decoder.buffer).await {
                Ok(()) => self.last_answer.set(Instant::now()),
                Err(error) => return self.fail(error),
            }
        }
    }

    fn decode_all(&self, decoder: &mut Decoder) -> Result<(), Error> {
        let mut engine = self.engine.borrow_mut();
        while let Some(pdu) = decoder.next()? {
            engine.handle(pdu)?;
        }
        for notice in engine.take_notices() {
            match notice {
                Notice::LogoutRequested { seconds } => {
                    self.health
                        .send_replace(Health::LogoutRequested { seconds });
                }
                Notice::Dropping => return Err(lost(LostReason::Announced)),
            }
        }
        self.output_ready.notify_one();
        Ok(())
    }

    fn deliver(&self, completed: &mut Vec<(Done, Result<Reply, Error>)>) {
        self.engine.borrow_mut().take_completed(completed);
        for (token, result) in completed.drain(..) {
            // A caller that stopped waiting has no use for its answer.
            let _ = token.send(result);
        }
    }

    async fn write_all(self: Rc<Self>, mut output: Output, digests: Digests) {
        let Some(half) = &mut output.half else { return };
        let mut wire = Vec::with_capacity(WRITE_BATCH);
        loop {
            self.output_ready.notified().await;
            if let Err(error) = self.write_queued(half, digests, &mut wire).await {
                return self.fail(io_lost(error));
            }
        }
    }

    async fn write_queued(
        &self,
        output: &mut OwnedWriteHalf,
        digests: Digests,
        wire: &mut Vec<u8>,
    ) -> io::Result<()> {
        loop {
            let next = self.engine.borrow_mut().take_outgoing();
            let Some(next) = next else { break };
            if let Some(direct) = pdu::encode(&next, digests, wire) {
                output.write_all(wire).await?;
                output.write_all(&direct).await?;
                wire.clear();
                pdu::encode_trailer(&direct, digests, wire);
            }
            if wire.len() >= WRITE_BATCH {
                output.write_all(wire).await?;
                wire.clear();
            }
        }
        output.write_all(wire).await?;
        wire.clear();
        Ok(())
    }
}

async fn receive(stream: &mut TcpStream, decoder: &mut Decoder) -> Result<Pdu, Error> {
    loop {
        if let Some(pdu) = decoder.next()? {
            return Ok(pdu);
        }
        fill(stream, &mut decoder.buffer).await?;
    }
}

async fn fill(input: &mut (impl AsyncReadExt + Unpin), buffer: &mut BytesMut) -> Result<(), Error> {
    buffer.reserve(READ_RESERVE);
    match input.read_buf(buffer).await {
        Ok(0) => Err(lost(LostReason::ClosedByTarget)),
        Ok(_) => Ok(()),
        Err(error) => Err(io_lost(error)),
    }
}

fn io_lost(error: io::Error) -> Error {
    lost(LostReason::Io(error.kind()))
}
