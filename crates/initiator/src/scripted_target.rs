//! A target for tests, in this thread and over real sockets: does what a test tells it to, which
//! no real target does on command. Several of them can serve one disk.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::pdu::{Bhs, Decoder, Digests, FINAL, NO_TAG, Pdu, answer, encode, request};
use crate::text::Keys;

pub(crate) const BLOCK_LENGTH: usize = 512;
pub(crate) const BLOCKS: usize = 8192;

/// The bytes behind one or more targets.
pub(crate) type Medium = Rc<RefCell<Vec<u8>>>;

pub(crate) fn medium() -> Medium {
    Rc::new(RefCell::new(vec![0; BLOCKS * BLOCK_LENGTH]))
}

/// Runs a test under a time limit, as everything here runs: on one thread, in a `LocalSet`.
pub(crate) fn on_one_thread(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let bounded = async { timeout(Duration::from_secs(20), work).await };
    let ended = tokio::task::LocalSet::new().block_on(&runtime, bounded);
    ended.expect("the test ends in time");
}

/// How to end a command instead of doing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Status(u8),
    /// Key, ASC, ASCQ.
    Sense(u8, u8, u8),
}

/// How an initiator went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Departure {
    /// By the end of its stream.
    Closed,
    /// By a reset.
    Reset,
}

/// What a test can tell the target, and see of it.
pub(crate) struct Script {
    /// Where logins are sent instead.
    pub(crate) redirect: Cell<Option<SocketAddr>>,
    /// Ends for the next commands other than TEST UNIT READY and INQUIRY.
    pub(crate) refusals: RefCell<VecDeque<Refusal>>,
    /// End of every command, TEST UNIT READY included.
    pub(crate) refuse_all: Cell<Option<Refusal>>,
    /// Clean logouts so far.
    pub(crate) logouts: Cell<u32>,
    /// Sessions so far.
    pub(crate) logins: Cell<u32>,
    /// How the latest initiator went that did not log out.
    pub(crate) departure: Cell<Option<Departure>>,
    /// Leave whatever comes unread.
    pub(crate) is_mute: watch::Sender<bool>,
    /// Counts up: each step asks every initiator to log out within a second.
    logout_requests: watch::Sender<u32>,
}

impl Script {
    pub(crate) fn request_logout(&self) {
        self.logout_requests.send_modify(|requests| *requests += 1);
    }
}

/// A listening target. Dropping it closes every connection.
pub(crate) struct ScriptedTarget {
    pub(crate) portal: SocketAddr,
    pub(crate) script: Rc<Script>,
    _connections: JoinSet<()>,
}

impl ScriptedTarget {
    pub(crate) async fn start(medium: &Medium) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let portal = listener.local_addr().unwrap();
        let script = Rc::new(Script {
            redirect: Cell::new(None),
            refusals: RefCell::default(),
            refuse_all: Cell::new(None),
            logouts: Cell::new(0),
            logins: Cell::new(0),
            departure: Cell::new(None),
            is_mute: watch::Sender::new(false),
            logout_requests: watch::Sender::new(0),
        });
        let mut connections = JoinSet::new();
        connections.spawn_local(accept_all(listener, Rc::clone(&script), Rc::clone(medium)));
        Self {
            portal,
            script,
            _connections: connections,
        }
    }
}

async fn accept_all(listener: TcpListener, script: Rc<Script>, medium: Medium) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let logout_requests = script.logout_requests.subscribe();
        let connection = Connection {
            stream,
            script: Rc::clone(&script),
            medium: Rc::clone(&medium),
            stat_sn: 1,
        };
        connections.spawn_local(connection.serve(logout_requests));
    }
}

struct Connection {
    stream: TcpStream,
    script: Rc<Script>,
    medium: Medium,
    stat_sn: u32,
}

impl Connection {
    async fn serve(mut self, mut logout_requests: watch::Receiver<u32>) {
        let mut decoder = Decoder::new(1 << 20);
        let mut is_mute = self.script.is_mute.subscribe();
        loop {
            if is_mute.wait_for(|is_mute| !is_mute).await.is_err() {
                return;
            }
            while let Ok(Some(pdu)) = decoder.next() {
                if !self.answer(&pdu).await {
                    return;
                }
            }
            tokio::select! {
                read = self.stream.read_buf(&mut decoder.buffer) => match read {
                    Ok(1..) => {}
                    Ok(0) => return self.script.departure.set(Some(Departure::Closed)),
                    Err(_) => return self.script.departure.set(Some(Departure::Reset)),
                },
                _ = logout_requests.changed() => {
                    let message = Bhs::new(answer::ASYNC_MESSAGE, FINAL)
                        .with_u32(16, NO_TAG)
                        .with(36, &[1])
                        .with(42, &[0, 1]);
                    self.send(message, Bytes::new()).await;
                }
            }
        }
    }

    /// `false` once the connection is over.
    async fn answer(&mut self, pdu: &Pdu) -> bool {
        let task = pdu.bhs.task();
        match pdu.bhs.opcode() {
            request::LOGIN => return self.log_in(task).await,
            request::LOGOUT => {
                self.script.logouts.set(self.script.logouts.get() + 1);
                let bhs = Bhs::new(answer::LOGOUT, FINAL).with_u32(16, task);
                self.send(bhs, Bytes::new()).await;
                return false;
            }
            request::SCSI_COMMAND => self.command(pdu, task).await,
            other => panic!("the script knows no opcode {other:#04x}"),
        }
        true
    }

    async fn log_in(&mut self, task: u32) -> bool {
        let login = Bhs::new(answer::LOGIN, FINAL | 1 << 2 | 3).with_u32(16, task);
        match self.script.redirect.get() {
            Some(to) => {
                let mut keys = Keys::default();
                keys.add("TargetAddress", &to.to_string());
                self.send(login.with(36, &[1, 1]), keys.into_bytes()).await;
                false
            }
            None => {
                self.script.logins.set(self.script.logins.get() + 1);
                self.send(login.with(14, &[0, 1]), Bytes::new()).await;
                true
            }
        }
    }

    async fn command(&mut self, pdu: &Pdu, task: u32) {
        let cdb: [u8; 16] = pdu.bhs.bytes(32);
        let is_question = matches!(cdb[0], 0x00 | 0x12);
        let next = || self.script.refusals.borrow_mut().pop_front();
        let refusal = self
            .script
            .refuse_all
            .get()
            .or_else(|| if is_question { None } else { next() });
        let response = Bhs::new(answer::SCSI_RESPONSE, FINAL).with_u32(16, task);
        match refusal {
            Some(Refusal::Status(status)) => {
                return self.send(response.with(3, &[status]), Bytes::new()).await;
            }
            Some(Refusal::Sense(key, asc, ascq)) => {
                let sense = vec![0, 4, 0x72, key, asc, ascq];
                return self.send(response.with(3, &[2]), sense.into()).await;
            }
            None => {}
        }
        let first = pdu.bhs.u32(38) as usize * BLOCK_LENGTH;
        let length = pdu.bhs.u32(42) as usize * BLOCK_LENGTH;
        let data = match cdb[0] {
            0x00 => Bytes::new(),
            0x12 => Bytes::from_static(&[0, 0x83, 0, 6, 1, 3, 0, 2, 0x60, 1]),
            0x9e => {
                let mut capacity = [0; 32];
                capacity[..8].copy_from_slice(&(BLOCKS as u64 - 1).to_be_bytes());
                capacity[8..12].copy_from_slice(&(BLOCK_LENGTH as u32).to_be_bytes());
                Bytes::copy_from_slice(&capacity)
            }
            0x88 => Bytes::copy_from_slice(&self.medium.borrow()[first..first + length]),
            0x8a => {
                assert_eq!(pdu.data.len(), length, "short writes come whole");
                self.medium.borrow_mut()[first..first + length].copy_from_slice(&pdu.data);
                Bytes::new()
            }
            other => panic!("the script knows no command {other:#04x}"),
        };
        if data.is_empty() {
            return self.send(response, data).await;
        }
        let missing = pdu.bhs.u32(20) - data.len() as u32;
        let underflow = if missing > 0 { 0x02 } else { 0 };
        let bhs = Bhs::new(answer::DATA_IN, FINAL | 0x01 | underflow)
            .with_u32(16, task)
            .with_u32(44, missing);
        self.send(bhs, data).await;
    }

    async fn send(&mut self, bhs: Bhs, data: Bytes) {
        let bhs = bhs
            .with_u32(24, self.stat_sn)
            .with_u32(28, 1)
            .with_u32(32, 1 << 20);
        self.stat_sn += 1;
        let mut wire = Vec::new();
        if let Some(direct) = encode(&Pdu { bhs, data }, Digests::default(), &mut wire) {
            wire.extend_from_slice(&direct);
        }
        // An initiator that went away is noticed by the next read.
        let _ = self.stream.write_all(&wire).await;
    }
}
