//! Peers that mean harm, over real sockets: what they send costs them their connection and nobody
//! else anything. `docs/hostile-initiators.md` lists the cases.

#![allow(
    clippy::disallowed_methods,
    reason = "real sockets and real time are what is tested"
)]

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use holdfast_iscsi::chap::{Algorithm, encode_binary};
use holdfast_iscsi::pdu::Pdu;
use holdfast_iscsi::pdu::framing::{Decoder, Digests, Frame};
use holdfast_iscsi::text::{self, Writer};
use holdfast_iscsi::{Credentials, Limits, Server, Target, TargetAuth, TargetSummary, Targets};
use holdfast_scsi::{DeviceIdentity, MemoryDevice};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::LocalSet;

const IQN: &str = "iqn.2026-01.test:v";
const SECRET: &str = "a secret of twelve";

struct OneTarget(Rc<MemoryDevice>);

impl Targets for OneTarget {
    fn list(&self, _initiator: &str) -> Vec<TargetSummary> {
        let portals = vec!["127.0.0.1:3260,1".to_owned()];
        [IQN, "iqn.2026-01.test:w"]
            .map(|iqn| TargetSummary {
                iqn: iqn.to_owned(),
                portals: portals.clone(),
            })
            .into()
    }

    fn open(&self, iqn: &str, _initiator: &str) -> Option<Target> {
        (iqn == IQN).then(|| Target {
            device: self.0.clone(),
            auth: TargetAuth::Chap(vec![Credentials {
                number: 1,
                username: "user".to_owned(),
                secret: SECRET.into(),
                mutual: None,
            }]),
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
    server: Rc<Server>,
    address: std::net::SocketAddr,
    _stop: watch::Sender<bool>,
}

impl Bench {
    async fn start(limits: Limits) -> Self {
        let device = Rc::new(MemoryDevice::new(DeviceIdentity {
            naa: [0x60; 16],
            serial: "1".into(),
            vendor: "HOLDFAST".into(),
            product: "Volume".into(),
            revision: "1".into(),
            logical_block_bytes: 512,
            capacity_bytes: 1 << 20,
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, shutdown) = watch::channel(false);
        let server = Server::new(Rc::new(OneTarget(device)), limits);
        let serving = server.clone();
        tokio::task::spawn_local(async move { serving.serve(listener, shutdown).await });
        Self {
            server,
            address,
            _stop: stop,
        }
    }

    async fn connect(&self) -> Initiator {
        Initiator {
            stream: TcpStream::connect(self.address).await.unwrap(),
            buffer: BytesMut::new(),
        }
    }

    /// Whether a login with this secret succeeds; `None` if the target closed without an answer.
    async fn log_in(&self, isid: u8, secret: &str) -> Option<(Initiator, bool)> {
        let mut initiator = self.connect().await;
        let accepted = initiator.log_in(isid, secret).await?;
        Some((initiator, accepted))
    }
}

struct Initiator {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Initiator {
    async fn send(&mut self, pdu: Pdu) {
        let frame = Frame::new(pdu, Digests::default());
        let bytes: Vec<u8> = frame.pieces().flat_map(|piece| piece.to_vec()).collect();
        self.send_bytes(&bytes).await;
    }

    async fn send_bytes(&mut self, bytes: &[u8]) {
        // The target may have closed already: then what was sent before was enough.
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next PDU; `None` when the target has closed the connection.
    async fn receive(&mut self) -> Option<Pdu> {
        let decoder = Decoder {
            digests: Digests::default(),
            data_bytes_max: 1 << 20,
        };
        loop {
            if let Some(pdu) = decoder.decode(&mut self.buffer).unwrap() {
                return Some(pdu);
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    async fn login_step(&mut self, flags: u8, isid: u8, keys: &[(&str, &str)]) -> Option<Pdu> {
        let mut writer = Writer::default();
        keys.iter().for_each(|(key, value)| writer.put(key, value));
        self.send(login_request(flags, isid, writer.finish())).await;
        self.receive().await
    }

    async fn log_in(&mut self, isid: u8, secret: &str) -> Option<bool> {
        let names = [
            ("InitiatorName", "iqn.2026-01.test:i"),
            ("TargetName", IQN),
            ("AuthMethod", "CHAP"),
        ];
        self.login_step(0x00, isid, &names).await?;
        let asked = self.login_step(0x00, isid, &[("CHAP_A", "7")]).await?;
        let pairs = text::parse(&asked.data).unwrap();
        let value = |key: &str| {
            pairs
                .iter()
                .find(|pair| pair.key == key)
                .unwrap()
                .value
                .clone()
        };
        let challenge = holdfast_iscsi::chap::decode_binary(&value("CHAP_C")).unwrap();
        let identifier = value("CHAP_I").parse().unwrap();
        let response = Algorithm::Sha256.response(identifier, &secret.into(), &challenge);
        let response = encode_binary(&response);
        let keys = [("CHAP_N", "user"), ("CHAP_R", &response)];
        let last = self.login_step(0x83, isid, &keys).await?;
        Some(last.header[36..38] == [0, 0])
    }

    async fn answers_commands(&mut self) -> bool {
        let mut pdu = Pdu::new(0x41);
        pdu.header[1] = 0x81;
        pdu.put_u32(16, 7);
        self.send(pdu).await;
        self.receive().await.is_some_and(|pdu| pdu.opcode() == 0x21)
    }
}

fn login_request(flags: u8, isid: u8, data: Bytes) -> Pdu {
    let mut pdu = Pdu::new(0x43);
    pdu.header[1] = flags;
    pdu.header[13] = isid;
    pdu.put_u32(24, 1);
    pdu.data = data;
    pdu
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limited = async {
        tokio::time::timeout(Duration::from_secs(30), test)
            .await
            .unwrap();
    };
    LocalSet::new().block_on(&runtime, limited);
}

fn quick() -> Limits {
    Limits {
        failure_delay: Duration::from_millis(1),
        ..Limits::default()
    }
}

#[test]
fn a_length_beyond_the_limit_closes_before_its_bytes_come() {
    run(async {
        let bench = Bench::start(quick()).await;
        let mut hostile = bench.connect().await;
        let mut header = [0; 48];
        header[0] = 0x43;
        header[5..8].copy_from_slice(&[0xff; 3]);
        hostile.send_bytes(&header).await;
        assert_eq!(hostile.receive().await, None);
        // The same in the full-feature phase.
        let (mut hostile, accepted) = bench.log_in(1, SECRET).await.unwrap();
        assert!(accepted);
        header[0] = 0x01;
        hostile.send_bytes(&header).await;
        assert_eq!(hostile.receive().await, None);
        assert!(bench.log_in(2, SECRET).await.unwrap().1);
    });
}

#[test]
fn anything_but_a_login_before_the_login_closes() {
    run(async {
        let bench = Bench::start(quick()).await;
        for opcode in (0..0x40).filter(|opcode| *opcode != 0x03) {
            let mut hostile = bench.connect().await;
            let mut pdu = Pdu::new(opcode);
            pdu.header[1] = 0x80;
            pdu.data = Bytes::from_static(&[0x55; 512]);
            hostile.send(pdu).await;
            assert_eq!(hostile.receive().await, None, "opcode {opcode:#x}");
        }
        assert!(bench.server.sessions().is_empty());
    });
}

#[test]
fn a_second_login_on_a_connection_ends_its_session_alone() {
    run(async {
        let bench = Bench::start(quick()).await;
        let (mut neighbour, _) = bench.log_in(1, SECRET).await.unwrap();
        let (mut hostile, _) = bench.log_in(2, SECRET).await.unwrap();
        let names = Bytes::from_static(
            b"InitiatorName=iqn.2026-01.test:j\0TargetName=iqn.2026-01.test:v\0",
        );
        hostile.send(login_request(0x87, 2, names)).await;
        assert_eq!(hostile.receive().await, None);
        assert!(neighbour.answers_commands().await);
        assert_eq!(bench.server.sessions().len(), 1);
    });
}

#[test]
fn text_without_a_null_byte_without_an_equals_sign_or_without_end_is_refused() {
    run(async {
        let bench = Bench::start(quick()).await;
        let long_value = format!("InitiatorName={}", "x".repeat(8000));
        for data in [
            &b"InitiatorName"[..],
            &[b'A'; 8192],
            &[0xff; 100],
            b"=\0=\0=\0",
            long_value.as_bytes(),
        ] {
            let mut hostile = bench.connect().await;
            let request = login_request(0x87, 1, Bytes::copy_from_slice(data));
            hostile.send(request).await;
            let refusal = hostile.receive().await.expect("a refusal");
            assert_eq!(refusal.header[36], 2, "an initiator error");
            assert_eq!(hostile.receive().await, None);
        }
        // Parts that never end.
        let mut hostile = bench.connect().await;
        for part in 0.. {
            let request = login_request(0x40, 1, Bytes::from_static(&[b'A'; 8192]));
            hostile.send(request).await;
            match hostile.receive().await {
                Some(pdu) if pdu.header[36] == 0 => assert!(part < 8, "more than 64 KiB"),
                Some(_) | None => break,
            }
        }
    });
}

#[test]
fn failed_logins_of_an_address_are_limited_and_its_sessions_live_on() {
    run(async {
        let limits = Limits {
            failed_logins: 4,
            failed_login_period: Duration::from_secs(3600),
            ..quick()
        };
        let bench = Bench::start(limits).await;
        let (mut session, accepted) = bench.log_in(1, SECRET).await.unwrap();
        assert!(accepted);
        // Connected before anything has failed, so that no limit of connections tells.
        let mut guesses = Vec::new();
        for _ in 0..12 {
            guesses.push(bench.connect().await);
        }
        let mut refused = 0;
        for guess in &mut guesses {
            if let Some(accepted) = guess.log_in(2, "another secret").await {
                assert!(!accepted);
                refused += 1;
            }
        }
        assert_eq!(refused, 4, "the others are not even looked at");
        assert!(bench.log_in(3, SECRET).await.is_none());
        assert!(session.answers_commands().await);
    });
}

#[test]
fn a_crowd_that_never_logs_in_does_not_keep_others_out() {
    run(async {
        let limits = Limits {
            half_open_connections: 8,
            ..quick()
        };
        let bench = Bench::start(limits).await;
        let (mut session, _) = bench.log_in(1, SECRET).await.unwrap();
        let mut crowd = Vec::new();
        for _ in 0..100 {
            let mut member = bench.connect().await;
            member.send_bytes(&[0x43, 0x87, 0, 0]).await;
            crowd.push(member);
        }
        // The newest has a place whoever holds the others.
        assert!(bench.log_in(2, SECRET).await.unwrap().1);
        assert!(session.answers_commands().await);
        for member in &mut crowd[..90] {
            assert_eq!(member.receive().await, None);
        }
    });
}

#[test]
fn the_end_of_a_connection_in_any_state_frees_its_place() {
    run(async {
        let bench = Bench::start(quick()).await;
        for round in 0..50 {
            // The same nexus each time: the old session, if it is still there, has to end first.
            let (mut initiator, accepted) = bench.log_in(1, SECRET).await.unwrap();
            assert!(accepted);
            let mut write = Pdu::new(0x01);
            write.header[1] = 0xa1;
            write.put_u32(16, 9);
            write.put_u32(20, 4096);
            write.put_u32(24, 1);
            write.header[32] = 0x2a;
            write.header[40] = 8;
            initiator.send(write).await;
            match round % 4 {
                // The connection is closed while data is awaited, or left as it is.
                0 => drop(initiator),
                1 => std::mem::forget(initiator.stream.into_std().unwrap()),
                2 => initiator.send_bytes(&[0xff; 48]).await,
                _ => {
                    let mut logout = Pdu::new(0x46);
                    logout.header[1] = 0x80;
                    logout.put_u32(16, 10);
                    initiator.send(logout).await;
                }
            }
        }
        let (mut last, accepted) = bench.log_in(1, SECRET).await.unwrap();
        assert!(accepted && last.answers_commands().await);
        assert_eq!(bench.server.sessions().len(), 1);
    });
}

#[test]
fn a_session_learns_of_its_own_target_only_and_nonsense_is_rejected() {
    run(async {
        let bench = Bench::start(quick()).await;
        let (mut session, _) = bench.log_in(1, SECRET).await.unwrap();
        let own = format!("TargetName={IQN}\0TargetAddress=127.0.0.1:3260,1\0");
        for (asked, answer) in [
            ("SendTargets=All", Some(own.as_str())),
            ("SendTargets=", Some(own.as_str())),
            ("SendTargets=iqn.2026-01.test:none", Some("")),
            ("SendTargets=Alle", None),
            ("sENDtARGETS=All", None),
            ("X-one=1\0X-two=2", None),
            ("InitiatorAlias=a\0X-two=2", Some("X-two=NotUnderstood\0")),
        ] {
            let mut request = Pdu::new(0x44);
            request.header[1] = 0x80;
            request.put_u32(16, 9);
            request.put_u32(20, 0xffff_ffff);
            request.data = Bytes::copy_from_slice(format!("{asked}\0").as_bytes());
            session.send(request).await;
            let response = session.receive().await.expect("an answer");
            match answer {
                Some(text) => assert_eq!(
                    (response.opcode(), &response.data[..]),
                    (0x24, text.as_bytes())
                ),
                None => assert_eq!(
                    (response.opcode(), response.header[2]),
                    (0x3f, 4),
                    "{asked}"
                ),
            }
        }
    });
}
