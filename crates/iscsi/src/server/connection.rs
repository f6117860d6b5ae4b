//! One connection: its login, then its session, in one task.
//!
//! ```text
//!  socket ──► Decoder ──► Login | Session ──► actions ──► Output ──► socket
//!                              ▲                 │
//!                              └── completions ◄─┴─► commands running side by side
//! ```
//!
//! However the connection ends, the task ends only after every command that the device had has
//! finished: then the session's place is free for the nexus to log in again.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use holdfast_path::Path;
use holdfast_scsi::{Admission, Admitted, Attachment, Completion, OutcomeUnknown, Sense};
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::input::Input;
use super::login::{log_in, open, send_all};
use super::output::Output;
use super::sessions::{Control, Place};
use super::{Counted, HalfOpen, Server, until_true};
use crate::login::LoginStatus;
use crate::negotiation::RECEIVE_BYTES_MAX;
use crate::pdu::InitiatorOpcode;
use crate::pdu::framing::{Decoder, Digests, FrameError};
use crate::session::{Action, Evidence, Front, Session, SessionError, TaskId};
use crate::targets::TargetSummary;

/// Time that commands under way get to be answered once an initiator that was asked to leave has
/// not: a takeover takes less, and a node that is told to stop must not wait for long.
const FINISH_TIME: Duration = Duration::from_secs(1);

/// A reset that lay unread for longer than this is not carried out before the initiator has given
/// a sign of life: it may have given the session up since.
const RESET_CONFIRMED_WITHIN: Duration = Duration::from_secs(2);

/// Time that the last PDUs get to reach the initiator.
const FAREWELL_TIME: Duration = Duration::from_secs(1);

/// Why a connection ended before the initiator logged out.
#[derive(Debug, Error)]
pub(super) enum End {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Session(#[from] SessionError),
    #[error("login refused: {0}")]
    Refused(LoginStatus),
    #[error("login took too long")]
    LoginTime,
    #[error("another connection got the place of one that had not logged in")]
    Evicted,
    #[error("too many failed logins from this address")]
    TooManyFailures,
    #[error("not a login")]
    NotALogin,
    #[error("the initiator fell silent")]
    Silent,
    #[error("ended by the target")]
    ByTarget,
    #[error("{0}")]
    OutcomeUnknown(#[from] OutcomeUnknown),
}

/// Serves one connection to its end.
pub(super) async fn run(
    server: Rc<Server>,
    stream: TcpStream,
    peer: SocketAddr,
    shutdown: watch::Receiver<bool>,
    (_connected, half_open): (Counted, HalfOpen),
) {
    let outcome = match stream.set_nodelay(true) {
        Ok(()) => serve(&server, &stream, shutdown, half_open).await,
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => debug!(%peer, "connection closed"),
        Err(End::Refused(status @ LoginStatus::AuthenticationFailed)) => {
            warn!(%peer, "login refused: {status}");
        }
        Err(end) => info!(%peer, "connection ended: {end}"),
    }
}

async fn serve(
    server: &Rc<Server>,
    stream: &TcpStream,
    shutdown: watch::Receiver<bool>,
    mut half_open: HalfOpen,
) -> Result<(), End> {
    let mut input = Input::default();
    let login = timeout(
        server.limits.login_time,
        log_in(server, stream, half_open.address, &mut input),
    );
    let mut leaving = shutdown.clone();
    let login = tokio::select! {
        login = login => login.map_err(|_| End::LoginTime)??,
        // A node that shuts down takes no new session.
        () = until_true(&mut leaving) => return Err(End::ByTarget),
        _ = &mut half_open.evicted => return Err(End::Evicted),
    };
    drop(half_open);
    // A nexus whose old session does not drain has to try again: its commands may still write.
    let opened = timeout(server.limits.login_time, open(server, &login)).await;
    let front = match opened.unwrap_or(Err(LoginStatus::ServiceUnavailable)) {
        Ok(front) => front,
        Err(status) => {
            send_all(stream, login.refuse(&status)).await?;
            return Err(End::Refused(status));
        }
    };
    let session = Session::new(&login, server.limits.window);
    let digests = login.parameters.digests;
    let handle = front
        .place
        .as_ref()
        .map_or_else(|| server.sessions.fresh_handle(), |place| place.handle);
    let response = login.response(handle, session.max_command());
    let mut evidence = Evidence::default();
    evidence.sent(&response, server.clock());
    send_all(stream, response).await?;
    info!(initiator = %login.initiator, kind = ?login.kind, handle, "logged in");
    let mut connection = Connection {
        server,
        stream,
        decoder: Decoder {
            digests,
            data_bytes_max: RECEIVE_BYTES_MAX as usize,
        },
        digests,
        input,
        output: Output::default(),
        session,
        evidence,
        front,
        running: FuturesUnordered::new(),
        resets: FuturesUnordered::new(),
        reads_waiting: VecDeque::new(),
        reads_running: BTreeMap::new(),
        read_bytes: 0,
        aborts: BTreeMap::new(),
        next_ticket: 0,
        closing: false,
    };
    let outcome = connection.run(shutdown).await;
    connection.drain().await;
    outcome
}

/// What the session asks of the node. Fields drop in this order: the unit forgets the nexus
/// before its place becomes free.
pub(super) struct NodeFront {
    pub(super) server: Rc<Server>,
    pub(super) initiator: Rc<str>,
    pub(super) target: Option<Rc<str>>,
    pub(super) attachment: Option<Attachment>,
    pub(super) path: Rc<Path>,
    pub(super) place: Option<Place>,
}

impl Drop for NodeFront {
    /// However the connection ends, also by a panic.
    fn drop(&mut self) {
        self.path.end();
    }
}

impl Front for NodeFront {
    fn admit(&self, lun: u64, cdb: &[u8; 16]) -> Admission {
        match &self.attachment {
            Some(attachment) => attachment.admit(lun, cdb),
            None => Admission::Done(Completion::check(Sense::UNIT_NOT_SUPPORTED, false)),
        }
    }

    fn check_condition(&self, sense: Sense) -> Completion {
        match &self.attachment {
            Some(attachment) => attachment.check_condition(sense),
            None => Completion::check(sense, false),
        }
    }

    fn send_targets(&self, name: Option<&str>) -> Vec<TargetSummary> {
        let mut targets = self.server.targets.list(&self.initiator);
        targets.retain(|target| name.is_none_or(|name| name == target.iqn));
        targets
    }

    fn target(&self) -> Option<&str> {
        self.target.as_deref()
    }
}

/// A read that waits until the initiator has taken earlier ones.
struct WaitingRead {
    task: TaskId,
    command: Admitted,
    data_in_bytes: u64,
}

type Outcome = Result<Completion, OutcomeUnknown>;

struct Connection<'a> {
    server: &'a Rc<Server>,
    stream: &'a TcpStream,
    decoder: Decoder,
    digests: Digests,
    input: Input,
    output: Output,
    session: Session,
    evidence: Evidence,
    front: NodeFront,
    running: FuturesUnordered<LocalBoxFuture<'static, (TaskId, Outcome)>>,
    /// Resets of the unit. They wait for other sessions, which may wait for this one's end, so
    /// they are dropped with the connection and not drained.
    resets: FuturesUnordered<LocalBoxFuture<'static, u64>>,
    reads_waiting: VecDeque<WaitingRead>,
    reads_running: BTreeMap<TaskId, u64>,
    read_bytes: u64,
    aborts: BTreeMap<u64, oneshot::Sender<()>>,
    next_ticket: u64,
    closing: bool,
}

impl Connection<'_> {
    async fn run(&mut self, mut shutdown: watch::Receiver<bool>) -> Result<(), End> {
        let silence = self.server.limits.silence;
        let mut heard = Instant::now();
        let mut pinged = false;
        let mut check_at = heard + silence;
        let mut leave_at = None;
        let mut finishing = false;
        loop {
            while !finishing && let Some(pdu) = self.decoder.decode(&mut self.input.buffer)? {
                if let Some(at) = self.evidence.received(&pdu) {
                    self.front.path.held(at);
                }
                if InitiatorOpcode::from_code(pdu.opcode()) == Some(InitiatorOpcode::NopOut) {
                    self.front.path.challenge_answered();
                }
                self.session.receive(pdu, &self.front)?;
                self.act();
            }
            self.start_reads();
            if finishing && !self.closing && self.is_idle() {
                self.session.drop_connection();
                self.act();
                leave_at = Some(Instant::now() + FAREWELL_TIME.min(silence));
            }
            self.output.write_to(self.stream)?;
            if self.closing && self.output.is_empty() {
                return Ok(());
            }
            let deaf = self.closing || finishing;
            let interest = match (deaf, self.output.is_empty()) {
                (false, true) => Interest::READABLE,
                (false, false) => Interest::READABLE | Interest::WRITABLE,
                (true, _) => Interest::WRITABLE,
            };
            let wake_at = leave_at.map_or(check_at, |at: Instant| at.min(check_at));
            tokio::select! {
                biased;
                control = next_control(&mut self.front.place) => self.control(control)?,
                Some((task, done)) = self.running.next(), if !self.running.is_empty() => {
                    self.finish(task, done)?;
                    // Whatever else has ended goes out with the same system call.
                    while let Some(Some((task, done))) = self.running.next().now_or_never() {
                        self.finish(task, done)?;
                    }
                }
                Some(ticket) = self.resets.next(), if !self.resets.is_empty() => {
                    self.session.reset_done(ticket);
                    self.act();
                }
                ready = self.stream.ready(interest), if !(deaf && self.output.is_empty()) => {
                    let ready = ready?;
                    if ready.is_readable() && !deaf {
                        self.input.receive(self.stream, &self.decoder)?;
                        heard = Instant::now();
                        pinged = false;
                    }
                }
                () = self.front.path.challenge_wanted(), if !deaf => {
                    self.front.path.challenged();
                    self.session.ping();
                    self.act();
                }
                () = until_true(&mut shutdown), if leave_at.is_none() => {
                    let seconds = self.server.limits.logout_time.as_secs();
                    self.session.request_logout(u16::try_from(seconds).unwrap_or(u16::MAX));
                    self.act();
                    leave_at = Some(Instant::now() + self.server.limits.logout_time);
                }
                () = sleep_until(wake_at) => {
                    let now = Instant::now();
                    if leave_at.is_some_and(|at| at <= now) {
                        if self.closing {
                            return Err(End::ByTarget);
                        }
                        if !finishing && !self.is_idle() {
                            // What has begun is answered, if it ends soon; nothing new begins.
                            finishing = true;
                            leave_at = Some(now + FINISH_TIME);
                            continue;
                        }
                        self.session.drop_connection();
                        self.act();
                        // The farewell gets a moment, not more.
                        leave_at = Some(now + FAREWELL_TIME.min(silence));
                    } else if heard + silence > now {
                        check_at = heard + silence;
                    } else if pinged || self.closing {
                        return Err(End::Silent);
                    } else {
                        self.session.ping();
                        self.act();
                        pinged = true;
                        check_at = now + silence;
                    }
                }
            }
        }
    }

    /// Whether the device has no command of the session, and none waits for it.
    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.reads_waiting.is_empty()
    }

    fn control(&mut self, control: Control) -> Result<(), End> {
        match control {
            Control::End => Err(End::ByTarget),
            Control::Abort(done) => {
                self.next_ticket += 1;
                self.aborts.insert(self.next_ticket, done);
                self.session.abort_for_others(self.next_ticket);
                self.act();
                Ok(())
            }
        }
    }

    /// Takes a command's outcome; if nobody knows it, no answer would be true.
    fn finish(&mut self, task: TaskId, outcome: Outcome) -> Result<(), End> {
        self.read_bytes -= self.reads_running.remove(&task).unwrap_or(0);
        self.session.complete(task, outcome?);
        self.act();
        Ok(())
    }

    /// Carries out what the session wants.
    fn act(&mut self) {
        for action in self.session.take_actions() {
            match action {
                Action::Send(pdu) => {
                    self.evidence.sent(&pdu, self.server.clock());
                    self.output.push(pdu, self.digests);
                }
                Action::Execute {
                    task,
                    command,
                    data,
                    data_in_bytes: 0,
                } => {
                    self.execute(task, command, data);
                }
                Action::Execute {
                    task,
                    command,
                    data: _,
                    data_in_bytes,
                } => {
                    self.reads_waiting.push_back(WaitingRead {
                        task,
                        command,
                        data_in_bytes,
                    });
                }
                Action::ResetUnit { ticket } => self.reset(ticket),
                Action::Drained { ticket } => {
                    if let Some(done) = self.aborts.remove(&ticket) {
                        // The other session may have ended meanwhile.
                        let _ = done.send(());
                    }
                }
                Action::DropTarget => {
                    if let Some(target) = &self.front.target {
                        self.server.sessions.end(target);
                    }
                    self.closing = true;
                }
                Action::Close => self.closing = true,
            }
        }
        self.start_reads();
    }

    /// Starts reads as long as what they return fits beside what the initiator has yet to take.
    fn start_reads(&mut self) {
        while let Some(read) = self.reads_waiting.front() {
            let held = self.read_bytes + self.output.bytes() as u64;
            if held > 0 && held + read.data_in_bytes > self.server.limits.read_bytes {
                return;
            }
            let Some(read) = self.reads_waiting.pop_front() else {
                return;
            };
            self.read_bytes += read.data_in_bytes;
            self.reads_running.insert(read.task, read.data_in_bytes);
            self.execute(read.task, read.command, Bytes::new());
        }
    }

    fn execute(&mut self, task: TaskId, command: Admitted, data: Bytes) {
        let Some(attachment) = &self.front.attachment else {
            return;
        };
        let execution = attachment.execute(command, data);
        self.running
            .push(Box::pin(execution.map(move |done| (task, done))));
    }

    fn reset(&mut self, ticket: u64) {
        let (Some(target), Some(attachment)) = (&self.front.target, &self.front.attachment) else {
            return;
        };
        let (sessions, target) = (self.server.sessions.clone(), target.clone());
        let (unit, own) = (attachment.unit().clone(), attachment.nexus().clone());
        let path = self.front.path.clone();
        self.resets.push(Box::pin(async move {
            if path.confirm(RESET_CONFIRMED_WITHIN).await.is_err() {
                // The connection ends, and this with it.
                std::future::pending::<()>().await;
            }
            sessions.abort(&target, |nexus| *nexus != own).await;
            unit.reset(&own).await;
            ticket
        }));
    }

    /// Waits until no command of the session can take effect any more. What has not begun does
    /// not begin; what lies unread in the socket goes with it.
    async fn drain(&mut self) {
        self.front.path.end();
        self.resets.clear();
        while self.running.next().await.is_some() {}
        debug!(outstanding = self.session.outstanding(), "commands drained");
    }
}

/// The next message to the session; never, for a discovery session.
async fn next_control(place: &mut Option<Place>) -> Control {
    match place {
        // The table holds the sender for as long as the place exists.
        Some(place) => place.control.recv().await.unwrap_or(Control::End),
        None => std::future::pending().await,
    }
}
