//! Links over real sockets on the loopback interface.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_rustls::{TlsConnector, TlsStream};

use super::authority::node_name;
use super::frame::{FRAME_BYTES_MAX, Kind};
use super::stream::{FrameStream, connect, prepare};
use super::*;
use crate::links::{DownReason, Frame, Incarnation, LinkEvent, Links, NodeId};
use crate::task::Runtime;

pub(super) const ONE: NodeId = NodeId(1);
pub(super) const TWO: NodeId = NodeId(2);
pub(super) const FIRST: Incarnation = Incarnation(1);
/// Far above what anything here takes; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Node {
    pub(super) links: HostLinks,
    pub(super) events: UnboundedReceiver<LinkEvent>,
}

impl Node {
    pub(super) async fn start(
        runtime: &Runtime,
        authority: &ClusterAuthority,
        node: NodeId,
    ) -> Self {
        let uuid = NodeUuid([node.0 as u8; 16]);
        Self::start_as(runtime, authority, node, uuid, FIRST, 0).await
    }

    async fn start_as(
        runtime: &Runtime,
        authority: &ClusterAuthority,
        node: NodeId,
        uuid: NodeUuid,
        incarnation: Incarnation,
        port: u16,
    ) -> Self {
        let config = LinksConfig {
            listen: ([127, 0, 0, 1], port).into(),
            credentials: authority.issue(node).unwrap(),
            uuid,
            incarnation,
        };
        let links = HostLinks::bind(runtime.clone(), config).await.unwrap();
        let events = links.take_events();
        Self { links, events }
    }

    pub(super) fn address(&self) -> String {
        self.links.local_address().to_string()
    }

    pub(super) fn meet(&self, peers: &[(NodeId, &str)]) {
        let peers = peers
            .iter()
            .map(|(node, address)| (*node, (*address).to_owned()));
        self.links.set_peers(peers.collect());
    }

    async fn next(&mut self) -> LinkEvent {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event.expect("nothing happened").expect("the links live")
    }

    pub(super) async fn expect_up(&mut self, node: NodeId, of: Incarnation) {
        match self.next().await {
            LinkEvent::Up { peer, incarnation } => assert_eq!((peer, incarnation), (node, of)),
            other => panic!("not up but {other:?}"),
        }
    }

    pub(super) async fn expect_down(&mut self, node: NodeId, of: Incarnation) -> DownReason {
        match self.next().await {
            LinkEvent::Down {
                peer,
                incarnation,
                reason,
            } => {
                assert_eq!((peer, incarnation), (node, of));
                reason
            }
            other => panic!("not down but {other:?}"),
        }
    }

    async fn expect_frame(&mut self, node: NodeId) -> Frame {
        match self.next().await {
            LinkEvent::Frame {
                from,
                incarnation,
                frame,
            } => {
                assert_eq!((from, incarnation), (node, FIRST));
                frame
            }
            other => panic!("not a frame but {other:?}"),
        }
    }

    pub(super) async fn problem(&self, node: NodeId) -> LinkProblem {
        let found = async {
            loop {
                let status = self.links.status();
                let peer = status.iter().find(|status| status.peer == node).unwrap();
                match (&peer.problem, peer.up) {
                    (Some(problem), None) => return problem.clone(),
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, found)
            .await
            .expect("no problem shows")
    }
}

pub(super) fn authority() -> ClusterAuthority {
    ClusterAuthority::generate(ClusterId([9; 16])).unwrap()
}

async fn pair(runtime: &Runtime, authority: &ClusterAuthority) -> (Node, Node) {
    let mut one = Node::start(runtime, authority, ONE).await;
    let mut two = Node::start(runtime, authority, TWO).await;
    one.meet(&[(TWO, &two.address())]);
    two.meet(&[(ONE, &one.address())]);
    one.expect_up(TWO, FIRST).await;
    two.expect_up(ONE, FIRST).await;
    (one, two)
}

/// A TLS connection to `node` with the credentials of number `from`, past the handshake.
async fn connect_as(from: NodeId, authority: &ClusterAuthority, node: &Node) -> FrameStream {
    let config = tls::client_config(&authority.issue(from).unwrap()).unwrap();
    let name = node_name(authority.cluster(), node.links.local_node())
        .try_into()
        .unwrap();
    let tcp = prepare(connect(&node.address()).await.unwrap()).unwrap();
    let tls = TlsConnector::from(config).connect(name, tcp).await.unwrap();
    FrameStream::new(TlsStream::from(tls))
}

/// The greeting of number two, through to the link.
async fn greet_as_two(authority: &ClusterAuthority, node: &mut Node) -> FrameStream {
    let mut stream = connect_as(TWO, authority, node).await;
    let hello = frame::Hello {
        protocol: frame::PROTOCOL_VERSION,
        cluster: authority.cluster(),
        from: TWO,
        to: ONE,
        incarnation: FIRST,
        uuid: NodeUuid([2; 16]),
        start: 5,
        link: 0,
        listen: None,
    };
    stream.send(&hello.encode()).await.unwrap();
    stream.expect(Kind::Hello).await.unwrap();
    node.expect_up(TWO, FIRST).await;
    stream
}

#[test]
fn frames_of_every_size_arrive_whole_and_in_order() {
    run(async |runtime| {
        let (mut one, mut two) = pair(&runtime, &authority()).await;
        let sizes = [0, 1, 2048, 2049, 16_384, 100_000, 3 << 20];
        let mut sent = Vec::new();
        for round in 0..20_u8 {
            for size in sizes {
                let payload = Bytes::from(vec![round; size]);
                sent.push(Frame::with_payload(vec![round, 1, 2], payload));
            }
        }
        for frame in &sent {
            one.links.send(TWO, frame.clone());
            two.links.send(ONE, frame.clone());
            if frame.payload.len() == 3 << 20 {
                assert_eq!(two.expect_frame(ONE).await.header[1..], [1, 2]);
                for _ in 1..sizes.len() {
                    two.expect_frame(ONE).await;
                }
            }
        }
        for frame in sent {
            assert_eq!(one.expect_frame(TWO).await, frame);
        }
    });
}

#[test]
fn each_side_finds_the_other_when_only_one_knows_an_address() {
    for knowing in [ONE, TWO] {
        run(async |runtime| {
            let authority = authority();
            let mut one = Node::start(&runtime, &authority, ONE).await;
            let mut two = Node::start(&runtime, &authority, TWO).await;
            let nowhere = "127.0.0.1:1";
            let (to_two, to_one) = (two.address(), one.address());
            one.meet(&[(TWO, if knowing == ONE { &to_two } else { nowhere })]);
            two.meet(&[(ONE, if knowing == TWO { &to_one } else { nowhere })]);
            one.expect_up(TWO, FIRST).await;
            two.expect_up(ONE, FIRST).await;
            one.links.send(TWO, Frame::new("there"));
            assert_eq!(two.expect_frame(ONE).await.header, "there");
            two.links.send(ONE, Frame::new("and back"));
            assert_eq!(one.expect_frame(TWO).await.header, "and back");
        });
    }
}

#[test]
fn a_stopped_peer_is_reported_as_refused_and_its_next_start_comes_up() {
    run(async |runtime| {
        let authority = authority();
        let (one, mut two) = pair(&runtime, &authority).await;
        let port = one.links.local_address().port();
        drop(one);
        let mut reason = two.expect_down(ONE, FIRST).await;
        if reason == DownReason::Lost {
            // The probe met the listener in the instant before it closed.
            reason = two.expect_down(ONE, FIRST).await;
        }
        assert_eq!(reason, DownReason::Refused);
        let uuid = NodeUuid([1; 16]);
        let next = Incarnation(2);
        let mut one = Node::start_as(&runtime, &authority, ONE, uuid, next, port).await;
        one.meet(&[(TWO, &two.address())]);
        two.expect_up(ONE, next).await;
        one.expect_up(TWO, FIRST).await;
    });
}

/// The child process of the test below: node one, until it is killed.
#[test]
#[ignore = "started by a_killed_process_is_reported_as_refused_by_its_host"]
fn child_process_that_is_node_one() {
    let Ok(authority) = std::env::var("TEST_AUTHORITY") else {
        return;
    };
    let address = std::env::var("TEST_ADDRESS").unwrap();
    run(async |runtime| {
        let authority = ClusterAuthority::from_pem(&authority).unwrap();
        let node = Node::start(&runtime, &authority, ONE).await;
        node.meet(&[(TWO, &address)]);
        println!("\nlistening on {}", node.address());
        std::future::pending::<()>().await;
    });
}

#[test]
fn a_killed_process_is_reported_as_refused_by_its_host() {
    run(async |runtime| {
        let authority = authority();
        let mut two = Node::start(&runtime, &authority, TWO).await;
        let name = "host::links_test::child_process_that_is_node_one";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--ignored", "--nocapture"])
            .env("TEST_AUTHORITY", authority.to_pem())
            .env("TEST_ADDRESS", two.address())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listening on ").map(str::to_owned))
            .unwrap();
        two.meet(&[(ONE, &address)]);
        two.expect_up(ONE, FIRST).await;
        let killed = runtime.now();
        child.kill().unwrap();
        let mut reason = two.expect_down(ONE, FIRST).await;
        if reason == DownReason::Lost {
            // The kernel closes a dying process's sockets one after the other.
            reason = two.expect_down(ONE, FIRST).await;
        }
        let after = runtime.now() - killed;
        child.wait().unwrap();
        assert_eq!(reason, DownReason::Refused);
        assert!(after < Duration::from_secs(1), "it took {after:?}");
        println!("killed and known to be gone within {after:?}");
    });
}

#[test]
fn a_silent_peer_is_lost_and_a_quiet_one_is_not() {
    run(async |runtime| {
        let authority = authority();
        let (mut one, _two) = pair(&runtime, &authority).await;
        let mut mute_victim = Node::start(&runtime, &authority, ONE).await;
        mute_victim.meet(&[(TWO, "127.0.0.1:1")]);
        let stream = greet_as_two(&authority, &mut mute_victim).await;
        let start = runtime.now();
        // Number two of the victim says nothing more; that of `one` is idle, and pings.
        assert_eq!(mute_victim.expect_down(TWO, FIRST).await, DownReason::Lost);
        let after = runtime.now() - start;
        assert!(
            after > Duration::from_millis(1900) && after < Duration::from_secs(4),
            "{after:?}"
        );
        assert!(one.events.try_recv().is_err(), "an idle link stays up");
        drop(stream);
    });
}

#[test]
fn a_node_of_another_cluster_is_refused() {
    run(async |runtime| {
        let one = Node::start(&runtime, &authority(), ONE).await;
        // The same cluster id, even: the authority decides.
        let two = Node::start(&runtime, &authority(), TWO).await;
        one.meet(&[(TWO, &two.address())]);
        two.meet(&[(ONE, &one.address())]);
        let refused = LinkProblem::RefusedByUs(LinkRefusal::OtherCluster);
        assert_eq!(one.problem(TWO).await, refused);
        assert_eq!(two.problem(ONE).await, refused);
    });
}

#[test]
fn another_node_at_the_dialled_address_is_refused() {
    run(async |runtime| {
        let authority = authority();
        let one = Node::start(&runtime, &authority, ONE).await;
        let three = Node::start(&runtime, &authority, NodeId(3)).await;
        one.meet(&[(TWO, &three.address())]);
        assert_eq!(
            one.problem(TWO).await,
            LinkProblem::RefusedByUs(LinkRefusal::WrongNode)
        );
    });
}

#[test]
fn a_node_that_is_not_a_peer_is_turned_away_until_it_is_one() {
    run(async |runtime| {
        let authority = authority();
        let mut one = Node::start(&runtime, &authority, ONE).await;
        let mut two = Node::start(&runtime, &authority, TWO).await;
        two.meet(&[(ONE, &one.address())]);
        assert_eq!(
            two.problem(ONE).await,
            LinkProblem::RefusedByPeer(LinkRefusal::UnknownNode)
        );
        one.meet(&[(TWO, &two.address())]);
        one.expect_up(TWO, FIRST).await;
        two.expect_up(ONE, FIRST).await;
        one.meet(&[]);
        assert_eq!(one.expect_down(TWO, FIRST).await, DownReason::Lost);
        assert_eq!(two.expect_down(ONE, FIRST).await, DownReason::Lost);
    });
}

#[test]
fn an_older_start_and_another_data_directory_are_refused_as_reused_identities() {
    run(async |runtime| {
        let authority = authority();
        let mut two = Node::start(&runtime, &authority, TWO).await;
        let uuid = NodeUuid([1; 16]);
        let current = Node::start_as(&runtime, &authority, ONE, uuid, Incarnation(5), 0).await;
        current.meet(&[(TWO, &two.address())]);
        two.meet(&[(ONE, &current.address())]);
        two.expect_up(ONE, Incarnation(5)).await;
        drop(current);
        two.expect_down(ONE, Incarnation(5)).await;

        let impostors = [(uuid, 4), (uuid, 5), (NodeUuid([8; 16]), 6)];
        for (uuid, incarnation) in impostors {
            let incarnation = Incarnation(incarnation);
            let impostor = Node::start_as(&runtime, &authority, ONE, uuid, incarnation, 0).await;
            impostor.meet(&[(TWO, &two.address())]);
            assert_eq!(
                impostor.problem(TWO).await,
                LinkProblem::RefusedByPeer(LinkRefusal::ReusedIdentity)
            );
        }
    });
}

/// The greeting of number one, which decides, up to its decision.
async fn greet_as_one(authority: &ClusterAuthority, two: &Node) -> FrameStream {
    let mut stream = connect_as(ONE, authority, two).await;
    let hello = frame::Hello {
        protocol: frame::PROTOCOL_VERSION,
        cluster: authority.cluster(),
        from: ONE,
        to: TWO,
        incarnation: FIRST,
        uuid: NodeUuid([1; 16]),
        start: 5,
        link: 0,
        listen: None,
    };
    stream.send(&hello.encode()).await.unwrap();
    stream.expect(Kind::Hello).await.unwrap();
    stream
}

fn decision(number: u64) -> Bytes {
    frame::encode(Kind::Start, &number.to_le_bytes())
}

#[test]
fn crossing_connections_end_on_the_latest_decision_in_whatever_order_they_arrive() {
    run(async |runtime| {
        let authority = authority();
        let mut two = Node::start(&runtime, &authority, TWO).await;
        two.meet(&[(ONE, "127.0.0.1:1")]);
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(greet_as_one(&authority, &two).await);
        }
        let [first, second, third] = &mut streams[..] else {
            unreachable!("three")
        };
        second.send(&decision(2)).await.unwrap();
        two.expect_up(ONE, FIRST).await;
        first.send(&decision(1)).await.unwrap();
        assert!(
            first.receive().await.is_err(),
            "the older decision is closed"
        );
        second
            .send(&frame::encode(Kind::Data, b"still the link"))
            .await
            .unwrap();
        assert_eq!(two.expect_frame(ONE).await.header, "still the link");
        third.send(&decision(3)).await.unwrap();
        assert_eq!(two.expect_down(ONE, FIRST).await, DownReason::Lost);
        two.expect_up(ONE, FIRST).await;
        assert!(second.receive().await.is_err(), "replaced");
        third
            .send(&frame::encode(Kind::Data, b"the link now"))
            .await
            .unwrap();
        assert_eq!(two.expect_frame(ONE).await.header, "the link now");
    });
}

#[test]
fn a_peer_removed_during_its_greeting_does_not_come_up() {
    run(async |runtime| {
        let authority = authority();
        let mut two = Node::start(&runtime, &authority, TWO).await;
        two.meet(&[(ONE, "127.0.0.1:1")]);
        let mut stream = greet_as_one(&authority, &two).await;
        two.meet(&[]);
        stream.send(&decision(1)).await.unwrap();
        assert!(stream.receive().await.is_err(), "closed");
        assert!(two.events.try_recv().is_err(), "and nothing was said of it");
    });
}

#[test]
fn a_protocol_too_old_is_refused() {
    run(async |runtime| {
        let authority = authority();
        let one = Node::start(&runtime, &authority, ONE).await;
        one.meet(&[(TWO, "127.0.0.1:1")]);
        let mut stream = connect_as(TWO, &authority, &one).await;
        let hello = frame::Hello {
            protocol: 0,
            cluster: authority.cluster(),
            from: TWO,
            to: ONE,
            incarnation: FIRST,
            uuid: NodeUuid([2; 16]),
            start: 5,
            link: 0,
            listen: None,
        };
        stream.send(&hello.encode()).await.unwrap();
        assert_eq!(
            stream.expect(Kind::Hello).await,
            Err(LinkProblem::RefusedByPeer(LinkRefusal::OtherVersion))
        );
    });
}

#[test]
fn garbage_on_the_port_closes_that_connection_and_no_other() {
    run(async |runtime| {
        let (mut one, mut two) = pair(&runtime, &authority()).await;
        for garbage in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0xff; 4096],
            b"\x16\x03\x01\x40\x00\x01",
        ] {
            let mut stream = TcpStream::connect(one.address()).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            // The last one is the start of a handshake that never goes on.
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            let closed = stream.read_to_end(&mut rest);
            // An alert, an end or a reset: in any case the connection is over.
            let _ = tokio::time::timeout(PATIENCE, closed)
                .await
                .expect("still open");
        }
        one.links.send(TWO, Frame::new("still here"));
        assert_eq!(two.expect_frame(ONE).await.header, "still here");
        assert!(one.events.try_recv().is_err());
    });
}

#[test]
fn a_peer_that_breaks_the_protocol_loses_its_link() {
    let too_long = [&frame::head(Kind::Data, &[], &[])[..4], &[0xff; 16]].concat();
    let mut damaged = frame::encode(Kind::Data, b"header").to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let limit = FRAME_BYTES_MAX as u64;
    let cases = [
        (
            too_long,
            FrameError::TooLong {
                bytes: 2 * u64::from(u32::MAX),
                limit,
            },
        ),
        (damaged, FrameError::Checksum),
        (b"noise".to_vec(), FrameError::Version(b'n')),
        (
            frame::encode(Kind::JoinRequest, &[]).to_vec(),
            FrameError::Kind(6),
        ),
    ];
    for (bytes, error) in cases {
        run(async |runtime| {
            let authority = authority();
            let mut one = Node::start(&runtime, &authority, ONE).await;
            one.meet(&[(TWO, "127.0.0.1:1")]);
            let mut stream = greet_as_two(&authority, &mut one).await;
            stream.send(&Bytes::from(bytes)).await.unwrap();
            assert_eq!(one.expect_down(TWO, FIRST).await, DownReason::Lost);
            assert_eq!(
                one.links.status()[0].problem,
                Some(LinkProblem::Frame(error))
            );
        });
    }
}

#[test]
fn a_frame_above_the_limit_is_not_sent_and_the_largest_is() {
    run(async |runtime| {
        let (one, mut two) = pair(&runtime, &authority()).await;
        let bulk = Bytes::from(vec![1; FRAME_BYTES_MAX]);
        one.links.send(TWO, Frame::with_payload("x", bulk.clone()));
        one.links.send(TWO, Frame::with_payload("", bulk.clone()));
        let frame = two.expect_frame(ONE).await;
        assert!(frame.header.is_empty() && frame.payload == bulk);
    });
}

#[test]
fn a_peer_that_takes_nothing_is_cut_off_when_its_queue_is_full() {
    run(async |runtime| {
        let authority = authority();
        let mut one = Node::start(&runtime, &authority, ONE).await;
        one.meet(&[(TWO, "127.0.0.1:1")]);
        let stream = greet_as_two(&authority, &mut one).await;
        let payload = Bytes::from(vec![1; 8 << 20]);
        for _ in 0..9 {
            one.links
                .send(TWO, Frame::with_payload("", payload.clone()));
        }
        assert_eq!(one.expect_down(TWO, FIRST).await, DownReason::Lost);
        let problem = one.links.status()[0].problem.clone();
        assert!(
            matches!(problem, Some(LinkProblem::Overflow(_))),
            "{problem:?}"
        );
        drop(stream);
    });
}

#[test]
fn a_machine_without_a_certificate_can_ask_to_join_and_nothing_else() {
    run(async |runtime| {
        let authority = authority();
        let one = Node::start(&runtime, &authority, ONE).await;
        one.meet(&[(TWO, "127.0.0.1:1")]);
        let address = one.address();
        let turned_away = join::request(&address, authority.fingerprint(), Bytes::new()).await;
        assert_eq!(
            turned_away,
            Err(join::JoinError::NoAnswer {
                address: address.clone(),
                problem: LinkProblem::RefusedByPeer(LinkRefusal::UnknownNode)
            })
        );
        one.links.set_join_handler(Rc::new(|request: Bytes| {
            Box::pin(async move { [b"welcome, ", &request[..]].concat().into() })
        }));
        let request = Bytes::from(vec![b'x'; join::MESSAGE_BYTES_MAX - 9]);
        let reply = join::request(&address, authority.fingerprint(), request.clone()).await;
        assert_eq!(reply.unwrap(), [b"welcome, ", &request[..]].concat());

        let elsewhere = super::authority::AuthorityFingerprint([1; 32]);
        assert_eq!(
            join::request(&address, elsewhere, Bytes::new()).await,
            Err(join::JoinError::OtherCluster {
                address: address.clone()
            })
        );
        let bytes = join::MESSAGE_BYTES_MAX + 1;
        assert_eq!(
            join::request(&address, authority.fingerprint(), vec![0; bytes].into()).await,
            Err(join::JoinError::TooLong { bytes })
        );

        let config = tls::join_config(authority.fingerprint()).unwrap();
        let tcp = prepare(connect(&address).await.unwrap()).unwrap();
        let name = "anything".try_into().unwrap();
        let tls = TlsConnector::from(config).connect(name, tcp).await.unwrap();
        let mut stream = FrameStream::new(TlsStream::from(tls));
        stream
            .send(&frame::encode(Kind::Data, b"let me in"))
            .await
            .unwrap();
        assert!(stream.receive().await.is_err(), "closed without an answer");
    });
}

#[test]
fn a_join_request_to_nobody_says_so() {
    run(async |_| {
        let fingerprint = authority().fingerprint();
        let nobody = join::request("127.0.0.1:1", fingerprint, Bytes::new()).await;
        assert_eq!(
            nobody,
            Err(join::JoinError::Unreachable {
                address: "127.0.0.1:1".into(),
                problem: LinkProblem::NotRunning
            })
        );
    });
}

#[test]
fn strangers_cannot_take_more_than_their_share_of_the_port() {
    run(async |runtime| {
        let authority = authority();
        let one = Node::start(&runtime, &authority, ONE).await;
        let mut idle = Vec::new();
        for _ in 0..32 {
            idle.push(TcpStream::connect(one.address()).await.unwrap());
        }
        let mut above = TcpStream::connect(one.address()).await.unwrap();
        let mut byte = [0];
        let closed = tokio::time::timeout(Duration::from_secs(2), above.read(&mut byte)).await;
        // An end or a reset, long before the time limit of a greeting.
        assert!(matches!(closed.expect("still open"), Ok(0) | Err(_)));
        drop(idle);
    });
}
