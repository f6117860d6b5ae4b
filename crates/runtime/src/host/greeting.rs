//! Greetings: how two nodes find out who the other is and agree that a connection is their link.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout, timeout_at};
use tokio_rustls::TlsStream;

use super::authority::{node_name, node_of};
use super::frame::{self, FrameError, Hello, Kind, LinkRefusal, PROTOCOL_VERSION};
use super::join;
use super::mesh::{Known, Mesh, Peer, note};
use super::problem::LinkProblem;
use super::stream::{FrameStream, prepare};
use crate::links::NodeId;

/// The oldest protocol that this version still speaks.
const PROTOCOL_VERSION_MIN: u16 = 1;
/// From the first byte to the established link.
const GREETING_LIMIT: Duration = Duration::from_secs(5);
/// Connections that have not proven yet who they are, in all and for each source address.
const HALF_OPEN_MAX: usize = 64;
const HALF_OPEN_PER_SOURCE_MAX: usize = 32;
/// After a failed `accept`: it fails for want of descriptors or memory, and at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Mesh {
    /// Tries every place where the peer may be. The first one's problem is the one to tell of.
    pub(super) async fn dial(self: &Rc<Self>, peer: &Rc<Peer>) -> Result<(), LinkProblem> {
        let mut first = None;
        for place in self.places(peer) {
            match self.dial_at(peer, place).await {
                Ok(()) => return Ok(()),
                Err(problem) => _ = first.get_or_insert(problem),
            }
        }
        Err(first.unwrap_or(LinkProblem::UnknownAddress))
    }

    async fn dial_at(self: &Rc<Self>, peer: &Rc<Peer>, place: String) -> Result<(), LinkProblem> {
        let tcp = self.connect(peer, &place).await?;
        let greeting = async {
            let name = ServerName::try_from(node_name(self.cluster, peer.node))
                .expect("numbers and a UUID make a DNS name");
            let tls = self.connector.connect(name, prepare(tcp)?).await?;
            let mut stream = FrameStream::new(TlsStream::from(tls));
            stream.send(&self.hello(peer.node, 0).encode()).await?;
            let hello = Hello::decode(&stream.expect(Kind::Hello).await?)?;
            match self.admit(peer.node, &hello) {
                Ok(_) => Ok((stream, hello)),
                Err(refusal) => {
                    stream.close_with(&refusal.encode()).await;
                    Err(LinkProblem::RefusedByUs(refusal))
                }
            }
        };
        let (stream, hello) = timeout(GREETING_LIMIT, greeting)
            .await
            .unwrap_or(Err(LinkProblem::TimedOut))?;
        self.learn(peer, Some(place));
        if self.decides(peer) {
            let start = frame::encode(Kind::Start, &self.decide().to_le_bytes());
            return self.install(peer, hello.incarnation, stream, Some(start));
        }
        self.follow(peer, &hello, hello.link, stream)
    }

    fn hello(&self, to: NodeId, link: u64) -> Hello {
        Hello {
            protocol: PROTOCOL_VERSION,
            cluster: self.cluster,
            from: self.local,
            to,
            incarnation: self.incarnation,
            uuid: self.uuid,
            start: self.start,
            link,
            listen: self.listen,
        }
    }

    fn decide(&self) -> u64 {
        self.decisions.update(|decisions| decisions + 1);
        self.decisions.get()
    }

    /// Checks a greeting against the sender's certificate and against what is known of it.
    fn admit(&self, certified: NodeId, hello: &Hello) -> Result<Rc<Peer>, LinkRefusal> {
        // Each side speaks the older of the two versions, if it still can.
        if hello.protocol < PROTOCOL_VERSION_MIN {
            return Err(LinkRefusal::OtherVersion);
        }
        if hello.cluster != self.cluster {
            return Err(LinkRefusal::OtherCluster);
        }
        if hello.from != certified || hello.to != self.local {
            return Err(LinkRefusal::WrongNode);
        }
        let peer = self.peers.borrow().get(&certified).cloned();
        let peer = peer.ok_or(LinkRefusal::UnknownNode)?;
        let Hello {
            uuid,
            incarnation,
            start,
            ..
        } = *hello;
        let mut all_known = self.known.borrow_mut();
        let fresh = Known {
            uuid,
            incarnation,
            start,
            decision: 0,
        };
        let known = all_known.entry(certified).or_insert(fresh);
        let other_process = known.incarnation == incarnation && known.start != start;
        if known.uuid != uuid || known.incarnation > incarnation || other_process {
            return Err(LinkRefusal::ReusedIdentity);
        }
        if known.incarnation < incarnation {
            *known = fresh;
        }
        Ok(peer)
    }

    /// Takes a connection for the link on the word of the deciding peer.
    fn follow(
        self: &Rc<Self>,
        peer: &Rc<Peer>,
        hello: &Hello,
        decision: u64,
        stream: FrameStream,
    ) -> Result<(), LinkProblem> {
        let mut all_known = self.known.borrow_mut();
        let known = all_known.get_mut(&peer.node).expect("admitted before");
        // While this greeting went on, a later connection, or a later start, may have won.
        if known.start != hello.start || known.decision >= decision {
            return Err(LinkProblem::Replaced);
        }
        known.decision = decision;
        drop(all_known);
        self.install(peer, hello.incarnation, stream, None)
    }

    pub(super) async fn accept_all(self: Rc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((tcp, source)) => self.accept(tcp, source),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn accept(self: &Rc<Self>, tcp: TcpStream, source: SocketAddr) {
        let Some(half_open) = HalfOpen::enter(self, source.ip()) else {
            tracing::debug!(%source, "too many connections that have not proven who they are");
            return;
        };
        let mesh = self.clone();
        self.spawn("link-greeting", async move {
            let _half_open = half_open;
            if let Err(problem) = mesh.greet(tcp).await {
                tracing::debug!(%source, %problem, "an incoming connection was closed");
            }
        });
    }

    /// Finds out who has connected and what for.
    async fn greet(self: &Rc<Self>, tcp: TcpStream) -> Result<(), LinkProblem> {
        let deadline = tokio::time::Instant::now() + GREETING_LIMIT;
        let handshake = async { Ok(self.acceptor.accept(prepare(tcp)?).await?) };
        let tls = timeout_at(deadline, handshake)
            .await
            .unwrap_or(Err(LinkProblem::TimedOut))?;
        let certificate = tls
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[_]>::first)
            .cloned();
        let mut stream = FrameStream::new(TlsStream::from(tls));
        let Some(certificate) = certificate else {
            return timeout(join::TIME_LIMIT, self.answer_join(stream))
                .await
                .unwrap_or(Err(LinkProblem::TimedOut));
        };
        let greeting = async {
            let hello = Hello::decode(&stream.expect(Kind::Hello).await?)?;
            let certified = match node_of(&certificate) {
                Some((cluster, node)) if cluster == self.cluster => Ok(node),
                Some(_) | None => Err(LinkRefusal::OtherCluster),
            };
            let peer = match certified.and_then(|node| self.admit(node, &hello)) {
                Ok(peer) => peer,
                Err(refusal) => {
                    stream.close_with(&refusal.encode()).await;
                    return Err(LinkProblem::RefusedByUs(refusal));
                }
            };
            self.learn(&peer, hello.listen.map(|listen| listen.to_string()));
            if self.decides(&peer) {
                let reply = self.hello(peer.node, self.decide()).encode();
                return self.install(&peer, hello.incarnation, stream, Some(reply));
            }
            stream.send(&self.hello(peer.node, 0).encode()).await?;
            match stream.expect(Kind::Start).await {
                Ok(body) => {
                    let number = body.get(..8).and_then(|bytes| bytes.try_into().ok());
                    let number = number.ok_or(FrameError::Greeting)?;
                    self.follow(&peer, &hello, u64::from_le_bytes(number), stream)
                }
                Err(problem) => {
                    note(&peer, problem.clone());
                    Err(problem)
                }
            }
        };
        timeout_at(deadline, greeting)
            .await
            .unwrap_or(Err(LinkProblem::TimedOut))
    }

    async fn answer_join(&self, mut stream: FrameStream) -> Result<(), LinkProblem> {
        let request = stream.expect(Kind::JoinRequest).await?;
        let handler = self.join_handler.borrow().clone();
        let Some(handler) = handler else {
            stream.close_with(&LinkRefusal::UnknownNode.encode()).await;
            return Err(LinkProblem::RefusedByUs(LinkRefusal::UnknownNode));
        };
        let reply = handler(request).await;
        assert!(
            reply.len() <= join::MESSAGE_BYTES_MAX,
            "a join reply of {} bytes",
            reply.len()
        );
        stream
            .close_with(&frame::encode(Kind::JoinReply, &reply))
            .await;
        Ok(())
    }
}

/// Counts a connection until it has proven who it is.
struct HalfOpen {
    mesh: Rc<Mesh>,
    source: IpAddr,
}

impl HalfOpen {
    fn enter(mesh: &Rc<Mesh>, source: IpAddr) -> Option<Self> {
        let mut half_open = mesh.half_open.borrow_mut();
        if half_open.values().sum::<usize>() >= HALF_OPEN_MAX
            || half_open
                .get(&source)
                .is_some_and(|count| *count >= HALF_OPEN_PER_SOURCE_MAX)
        {
            return None;
        }
        *half_open.entry(source).or_insert(0) += 1;
        Some(Self {
            mesh: mesh.clone(),
            source,
        })
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        let mut half_open = self.mesh.half_open.borrow_mut();
        if let Some(count) = half_open.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                half_open.remove(&self.source);
            }
        }
    }
}
