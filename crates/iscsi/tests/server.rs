//! The server over real sockets, seen by a small raw initiator.

#![allow(
    clippy::disallowed_methods,
    reason = "real sockets and real time are what is tested"
)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use holdfast_iscsi::pdu::Pdu;
use holdfast_iscsi::pdu::framing::{Decoder, Digests, Frame};
use holdfast_iscsi::text::Writer;
use holdfast_iscsi::{Limits, Server, Target, TargetAuth, TargetSummary, Targets};
use holdfast_path::{Path, Requester};
use holdfast_scsi::{
    BlockDevice, CompareOutcome, DeviceError, DeviceIdentity, MappedExtent, MemoryDevice,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::LocalSet;

const IQN: &str = "iqn.2026-01.test:v";

/// A volume whose writes wait for a permit.
struct Gated {
    memory: Rc<MemoryDevice>,
    gate: Rc<Semaphore>,
    begun: Rc<Cell<usize>>,
    done: Rc<Cell<usize>>,
    /// The path that the last write came by.
    path: RefCell<Option<Rc<Path>>>,
}

impl BlockDevice for Gated {
    fn identity(&self) -> DeviceIdentity {
        self.memory.identity()
    }

    fn read(
        &self,
        requester: Requester,
        offset_bytes: u64,
        length_bytes: u32,
    ) -> LocalBoxFuture<'static, Result<Bytes, DeviceError>> {
        self.memory.read(requester, offset_bytes, length_bytes)
    }

    fn write(
        &self,
        requester: Requester,
        offset_bytes: u64,
        data: Bytes,
    ) -> LocalBoxFuture<'static, Result<(), DeviceError>> {
        *self.path.borrow_mut() = Some(requester.path.clone());
        let (memory, gate) = (self.memory.clone(), self.gate.clone());
        let (begun, done) = (self.begun.clone(), self.done.clone());
        Box::pin(async move {
            begun.set(begun.get() + 1);
            gate.acquire()
                .await
                .map_err(|_| DeviceError::Unknown)?
                .forget();
            let outcome = memory.write(requester, offset_bytes, data).await;
            done.set(done.get() + 1);
            outcome
        })
    }

    fn zero(
        &self,
        requester: Requester,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> LocalBoxFuture<'static, Result<(), DeviceError>> {
        self.memory.zero(requester, offset_bytes, length_bytes)
    }

    fn flush(&self) -> LocalBoxFuture<'static, Result<(), DeviceError>> {
        self.memory.flush()
    }

    fn compare_and_write(
        &self,
        requester: Requester,
        offset_bytes: u64,
        compare: Bytes,
        write: Bytes,
    ) -> LocalBoxFuture<'static, Result<CompareOutcome, DeviceError>> {
        self.memory
            .compare_and_write(requester, offset_bytes, compare, write)
    }

    fn mapped_extents(
        &self,
        requester: Requester,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> LocalBoxFuture<'static, Result<Vec<MappedExtent>, DeviceError>> {
        self.memory
            .mapped_extents(requester, offset_bytes, length_bytes)
    }
}

struct OneTarget(Rc<Gated>);

impl Targets for OneTarget {
    fn list(&self, _initiator: &str) -> Vec<TargetSummary> {
        vec![TargetSummary {
            iqn: IQN.to_owned(),
            portals: vec!["127.0.0.1:1,1".to_owned()],
        }]
    }

    fn open(&self, iqn: &str, _initiator: &str) -> Option<Target> {
        (iqn == IQN).then(|| Target {
            device: self.0.clone(),
            auth: TargetAuth::None,
            portal_group_tag: 1,
            relative_port_id: 1,
            port_groups: None,
            reservations: None,
        })
    }

    fn discovery_auth(&self) -> TargetAuth {
        TargetAuth::None
    }
}

struct Bench {
    device: Rc<Gated>,
    server: Rc<Server>,
    address: std::net::SocketAddr,
    stop: watch::Sender<bool>,
    ended: RefCell<Option<tokio::task::JoinHandle<()>>>,
}

impl Bench {
    /// A server whose volume lets `writes` writes pass.
    async fn start(limits: Limits, writes: usize) -> Self {
        let memory = Rc::new(MemoryDevice::new(DeviceIdentity {
            naa: [0x60; 16],
            serial: "1".into(),
            vendor: "HOLDFAST".into(),
            product: "Volume".into(),
            revision: "1".into(),
            logical_block_bytes: 512,
            capacity_bytes: 1 << 20,
        }));
        let gate = Rc::new(Semaphore::new(writes));
        let (begun, done) = (Rc::default(), Rc::default());
        let device = Rc::new(Gated {
            memory,
            gate,
            begun,
            done,
            path: RefCell::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, shutdown) = watch::channel(false);
        let server = Server::new(Rc::new(OneTarget(device.clone())), limits);
        let serving = server.clone();
        let ended = tokio::task::spawn_local(async move {
            serving.serve(listener, shutdown).await.unwrap();
        });
        Self {
            device,
            server,
            address,
            stop,
            ended: RefCell::new(Some(ended)),
        }
    }

    /// Waits until the device has begun so many writes.
    async fn begun(&self, writes: usize) {
        while self.device.begun.get() < writes {
            tokio::task::yield_now().await;
        }
    }

    async fn connect(&self) -> Initiator {
        let stream = TcpStream::connect(self.address).await.unwrap();
        Initiator {
            stream,
            buffer: BytesMut::new(),
            digests: Digests::default(),
            command: 1,
            status: 0,
        }
    }

    async fn log_in(&self, isid: u8) -> Initiator {
        let mut initiator = self.connect().await;
        initiator.log_in(isid, &[]).await;
        initiator
    }
}

struct Initiator {
    stream: TcpStream,
    buffer: BytesMut,
    digests: Digests,
    command: u32,
    /// The last status number, which the next command acknowledges.
    status: u32,
}

impl Initiator {
    async fn send(&mut self, pdu: Pdu) {
        let frame = Frame::new(pdu, self.digests);
        let bytes: Vec<u8> = frame.pieces().flat_map(|piece| piece.to_vec()).collect();
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// The next PDU; `None` when the target has closed the connection.
    async fn receive(&mut self) -> Option<Pdu> {
        let decoder = Decoder {
            digests: self.digests,
            data_bytes_max: 1 << 20,
        };
        loop {
            if let Some(pdu) = decoder.decode(&mut self.buffer).unwrap() {
                self.status = self.status.max(pdu.u32_at(24));
                return Some(pdu);
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    async fn log_in(&mut self, isid: u8, keys: &[(&str, &str)]) -> Pdu {
        let mut pdu = Pdu::new(0x43);
        pdu.header[1] = 0x87;
        pdu.header[13] = isid;
        pdu.put_u32(24, self.command);
        let mut writer = Writer::default();
        writer.put("InitiatorName", "iqn.2026-01.test:i");
        writer.put("TargetName", IQN);
        keys.iter().for_each(|(key, value)| writer.put(key, value));
        pdu.data = writer.finish();
        self.send(pdu).await;
        let response = self.receive().await.expect("a login response");
        assert_eq!(response.header[36..38], [0, 0], "login refused");
        response
    }

    fn command(&mut self, flags: u8, expected: u32, cdb: &[u8], data: Bytes) -> Pdu {
        let mut pdu = Pdu::new(1);
        pdu.header[1] = flags;
        pdu.put_u32(16, self.command);
        pdu.put_u32(20, expected);
        pdu.put_u32(24, self.command);
        pdu.put_u32(28, self.status + 1);
        pdu.header[32..32 + cdb.len()].copy_from_slice(cdb);
        pdu.data = data;
        self.command += 1;
        pdu
    }

    /// TEST UNIT READY until no unit attention is left.
    async fn clear_attentions(&mut self) {
        loop {
            let pdu = self.command(0x81, 0, &[0], Bytes::new());
            self.send(pdu).await;
            if self.receive().await.expect("a response").header[3] == 0 {
                return;
            }
        }
    }

    async fn start_write(&mut self, byte: u8) {
        let cdb = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1];
        let pdu = self.command(0xa1, 512, &cdb, vec![byte; 512].into());
        self.send(pdu).await;
    }

    async fn read_block(&mut self) -> Bytes {
        let pdu = self.command(0xc1, 512, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1], Bytes::new());
        self.send(pdu).await;
        self.answer().await.data
    }

    /// The next PDU that is no ping.
    async fn answer(&mut self) -> Pdu {
        loop {
            let pdu = self.receive().await.expect("an answer");
            if pdu.opcode() != 0x20 {
                return pdu;
            }
        }
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limited = async {
        tokio::time::timeout(Duration::from_secs(20), test)
            .await
            .unwrap()
    };
    LocalSet::new().block_on(&runtime, limited);
}

/// Lets everything that can happen without outside help happen, then says whether the future is
/// still waiting.
async fn stays_pending(future: &mut (impl Future + Unpin)) -> bool {
    for _ in 0..2000 {
        if future.now_or_never().is_some() {
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

/// A write that the device holds, and the path that it came by.
async fn held_write(bench: &Bench) -> (Initiator, Rc<Path>) {
    let mut initiator = bench.log_in(1).await;
    initiator.clear_attentions().await;
    initiator.start_write(7).await;
    bench.begun(1).await;
    let path = bench.device.path.borrow().clone();
    (initiator, path.expect("a write has begun"))
}

#[test]
fn a_ping_asks_for_a_sign_of_life_and_its_answer_alone_confirms_the_path() {
    run(async {
        let bench = Bench::start(Limits::default(), 0).await;
        let (mut initiator, path) = held_write(&bench).await;
        let mut confirmed = Box::pin(path.confirm(Duration::ZERO));
        assert!(stays_pending(&mut confirmed).await);
        let ping = initiator.receive().await.expect("a ping");
        assert_eq!((ping.opcode(), ping.task_tag()), (0x20, u32::MAX));
        // Something else that arrives may have been on its way for long.
        initiator.start_write(8).await;
        bench.begun(2).await;
        assert!(stays_pending(&mut confirmed).await);
        let mut answer = Pdu::new(0x40);
        answer.header[1] = 0x80;
        answer.put_u32(16, u32::MAX);
        answer.put_u32(20, ping.u32_at(20));
        initiator.send(answer).await;
        assert_eq!(confirmed.await, Ok(()));
    });
}

#[test]
fn an_acknowledged_status_confirms_the_path_without_a_ping() {
    run(async {
        let bench = Bench::start(Limits::default(), 1).await;
        let (mut initiator, path) = held_write(&bench).await;
        let sent_after = path.now();
        let response = initiator.receive().await.expect("a response");
        let cdb = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1];
        let mut next = initiator.command(0xa1, 512, &cdb, vec![9; 512].into());
        next.put_u32(28, response.u32_at(24) + 1);
        initiator.send(next).await;
        bench.begun(2).await;
        let held_at = path.now() - path.unconfirmed_for().expect("evidence");
        // Statuses of 20 ms share one time.
        assert!(held_at + Duration::from_millis(20) >= sent_after);
    });
}

#[test]
fn a_path_ends_with_its_connection_and_before_its_commands() {
    run(async {
        let bench = Bench::start(Limits::default(), 0).await;
        let (initiator, path) = held_write(&bench).await;
        assert!(!path.has_ended());
        drop(initiator);
        path.ended().await;
        assert_eq!(bench.device.done.get(), 0);
    });
}

#[test]
fn a_command_of_unknown_outcome_ends_the_session_and_is_not_answered() {
    run(async {
        let bench = Bench::start(Limits::default(), 0).await;
        let (mut initiator, path) = held_write(&bench).await;
        bench.device.gate.close();
        assert_eq!(initiator.receive().await, None);
        assert!(path.has_ended());
    });
}

#[test]
fn a_new_login_of_a_nexus_waits_until_the_commands_of_the_old_one_have_ended() {
    run(async {
        let bench = Bench::start(Limits::default(), 0).await;
        let mut old = bench.log_in(1).await;
        old.clear_attentions().await;
        old.start_write(7).await;
        bench.begun(1).await;
        let mut new = bench.connect().await;
        let mut login = Box::pin(new.log_in(1, &[]));
        assert!(
            stays_pending(&mut login).await,
            "the old write can still take effect"
        );
        bench.device.gate.add_permits(1);
        login.await;
        assert_eq!(bench.device.done.get(), 1);
        assert_eq!(
            old.receive().await,
            None,
            "the old connection is closed without an answer"
        );
        new.clear_attentions().await;
        assert_eq!(new.read_block().await, vec![7; 512]);
        assert_eq!(bench.server.sessions().len(), 1);
    });
}

#[test]
fn sessions_of_other_nexuses_live_side_by_side() {
    run(async {
        let bench = Bench::start(Limits::default(), 1).await;
        let (mut first, mut second) = (bench.log_in(1).await, bench.log_in(2).await);
        first.clear_attentions().await;
        second.clear_attentions().await;
        first.start_write(9).await;
        assert_eq!(first.receive().await.unwrap().header[3], 0);
        assert_eq!(second.read_block().await, vec![9; 512]);
        assert_eq!(bench.server.sessions().len(), 2);
    });
}

#[test]
fn a_reset_waits_for_the_commands_of_other_sessions_which_are_never_answered() {
    run(async {
        let bench = Bench::start(Limits::default(), 0).await;
        let (mut writer, mut resetter) = (bench.log_in(1).await, bench.log_in(2).await);
        writer.clear_attentions().await;
        writer.start_write(1).await;
        bench.begun(1).await;
        let mut reset = Pdu::new(0x42);
        reset.put_u32(28, resetter.status + 1);
        reset.header[1] = 0x85;
        reset.put_u32(16, 99);
        resetter.send(reset).await;
        let mut answer = Box::pin(resetter.receive());
        assert!(
            stays_pending(&mut answer).await,
            "the other session's write may still land"
        );
        bench.device.gate.add_permits(1);
        let answer = answer.await.unwrap();
        assert_eq!((answer.opcode(), answer.header[2]), (0x22, 0));
        assert_eq!(bench.device.done.get(), 1);
        let ready = writer.command(0x81, 0, &[0], Bytes::new());
        let tag = ready.task_tag();
        writer.send(ready).await;
        let response = writer.receive().await.unwrap();
        assert_eq!((response.task_tag(), response.header[3]), (tag, 2));
        assert_eq!(response.data[2 + 12..2 + 14], [0x29, 0x03]);
    });
}

#[test]
fn reads_and_writes_go_through_with_digests_and_a_damaged_one_closes() {
    run(async {
        let bench = Bench::start(Limits::default(), 1).await;
        let mut initiator = bench.connect().await;
        let keys = [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")];
        initiator.log_in(1, &keys).await;
        initiator.digests = Digests {
            header: true,
            data: true,
        };
        initiator.clear_attentions().await;
        initiator.start_write(3).await;
        assert_eq!(initiator.receive().await.unwrap().header[3], 0);
        assert_eq!(initiator.read_block().await, vec![3; 512]);
        let pdu = initiator.command(
            0xa1,
            512,
            &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1],
            vec![4; 512].into(),
        );
        let frame = Frame::new(pdu, initiator.digests);
        let mut bytes: Vec<u8> = frame.pieces().flat_map(|piece| piece.to_vec()).collect();
        bytes[100] ^= 1;
        initiator.stream.write_all(&bytes).await.unwrap();
        assert_eq!(initiator.receive().await, None);
        assert_eq!(bench.device.begun.get(), 1);
    });
}

#[test]
fn hostile_bytes_before_the_login_close_the_connection() {
    run(async {
        let bench = Bench::start(Limits::default(), 0).await;
        let mut oversized = [0; 48];
        oversized[0] = 0x43;
        oversized[5..8].fill(0xff);
        let not_a_login = [0; 48];
        for bytes in [oversized, not_a_login] {
            let mut initiator = bench.connect().await;
            initiator.stream.write_all(&bytes).await.unwrap();
            assert_eq!(initiator.receive().await, None);
        }
        bench.log_in(1).await;
    });
}

#[test]
fn half_open_connections_are_bounded_in_number_and_time() {
    run(async {
        let limits = Limits {
            half_open_connections: 2,
            login_time: Duration::from_millis(50),
            ..Limits::default()
        };
        let bench = Bench::start(limits, 0).await;
        let (mut first, mut second) = (bench.connect().await, bench.connect().await);
        let mut third = bench.connect().await;
        assert_eq!(first.receive().await, None, "the oldest has to go");
        assert_eq!(
            (second.receive().await, third.receive().await),
            (None, None),
            "the others run out of time"
        );
        bench.log_in(1).await;
    });
}

#[test]
fn shutdown_asks_for_a_logout_then_says_goodbye_and_ends() {
    run(async {
        let limits = Limits {
            logout_time: Duration::from_millis(20),
            ..Limits::default()
        };
        let bench = Bench::start(limits, 0).await;
        let mut initiator = bench.log_in(1).await;
        let mut half_open = bench.connect().await;
        // A second login proves that the half-open connection has been accepted before it.
        drop(bench.log_in(2).await);
        bench.stop.send_replace(true);
        assert_eq!(
            half_open.receive().await,
            None,
            "a login under way is given up"
        );
        let events: Vec<(u8, u8)> = [initiator.receive().await, initiator.receive().await]
            .iter()
            .flatten()
            .map(|pdu| (pdu.opcode(), pdu.header[36]))
            .collect();
        assert_eq!(events, [(0x32, 1), (0x32, 3)]);
        assert_eq!(initiator.receive().await, None);
        let ended = bench.ended.borrow_mut().take().unwrap();
        ended.await.unwrap();
    });
}

#[test]
fn a_command_under_way_is_answered_before_the_goodbye_if_it_ends_in_time() {
    for ends_in_time in [true, false] {
        run(async {
            let limits = Limits {
                logout_time: Duration::from_millis(20),
                ..Limits::default()
            };
            let bench = Bench::start(limits, 0).await;
            let mut initiator = bench.log_in(1).await;
            initiator.clear_attentions().await;
            initiator.start_write(5).await;
            bench.begun(1).await;
            bench.stop.send_replace(true);
            let asked = initiator.receive().await.unwrap();
            assert_eq!((asked.opcode(), asked.header[36]), (0x32, 1));
            tokio::time::sleep(Duration::from_millis(100)).await;
            // The time to log out is over: what comes now is not begun any more.
            initiator.start_write(6).await;
            if ends_in_time {
                bench.device.gate.add_permits(1);
                let answer = initiator.receive().await.unwrap();
                assert_eq!((answer.opcode(), answer.header[3]), (0x21, 0));
            }
            let goodbye = initiator.receive().await.unwrap();
            assert_eq!((goodbye.opcode(), goodbye.header[36]), (0x32, 3));
            // What is not answered is still waited for; then the connection is closed.
            bench.device.gate.add_permits(2);
            assert_eq!(initiator.receive().await, None);
            let ended = bench.ended.borrow_mut().take().unwrap();
            ended.await.unwrap();
            assert_eq!((bench.device.begun.get(), bench.device.done.get()), (1, 1));
        });
    }
}

#[test]
fn a_silent_initiator_is_pinged_and_then_dropped() {
    run(async {
        let limits = Limits {
            silence: Duration::from_millis(30),
            ..Limits::default()
        };
        let bench = Bench::start(limits, 0).await;
        let mut initiator = bench.log_in(1).await;
        let ping = initiator.receive().await.unwrap();
        assert_eq!(ping.opcode(), 0x20);
        assert_ne!(ping.u32_at(20), 0xffff_ffff);
        assert_eq!(initiator.receive().await, None);
    });
}

/// How long a parameter list is, the CDB says; what the initiator announces beyond it is a
/// residual (RFC 7143 11.4.5.1).
#[test]
fn a_parameter_list_is_taken_from_more_data_and_refused_from_less() {
    const UNDERFLOW: u8 = 0x82;
    run(async {
        let bench = Bench::start(Limits::default(), 1).await;
        let mut initiator = bench.log_in(1).await;
        initiator.clear_attentions().await;
        let mut unmap = vec![0, 22, 0, 16, 0, 0, 0, 0];
        unmap.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0]);
        let mode = vec![0, 0, 0, 0, 0x0a, 0x0a, 0x24, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut register = vec![0; 24];
        register[15] = 1;
        let lists: [(&[u8], Vec<u8>); 3] = [
            (&[0x42, 0, 0, 0, 0, 0, 0, 0, 24], unmap),
            (&[0x15, 0x10, 0, 0, 16], mode),
            (&[0x5f, 6, 0, 0, 0, 0, 0, 0, 24], register),
        ];
        initiator.start_write(7).await;
        assert_eq!(initiator.answer().await.header[3], 0);
        for (cdb, list) in &lists {
            let bytes = list.len() as u32;
            let mut more = list.clone();
            more.resize(512, 0);
            let pdu = initiator.command(0xa1, 512, cdb, more.into());
            initiator.send(pdu).await;
            let response = initiator.answer().await;
            assert_eq!(
                (response.opcode(), response.header[3]),
                (0x21, 0),
                "{cdb:x?}"
            );
            assert_eq!(response.header[1], UNDERFLOW, "{cdb:x?}");
            assert_eq!(response.u32_at(44), 512 - bytes, "{cdb:x?}");
        }
        assert_eq!(initiator.read_block().await, vec![0; 512], "unmapped");
        for (cdb, list) in &lists {
            let less = list[..list.len() - 4].to_vec();
            let pdu = initiator.command(0xa1, less.len() as u32, cdb, less.into());
            initiator.send(pdu).await;
            let response = initiator.answer().await;
            assert_eq!(response.header[3], 2, "{cdb:x?}: CHECK CONDITION");
        }
    });
}
