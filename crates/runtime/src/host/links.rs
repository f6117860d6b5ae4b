//! Links between nodes: TCP with mutual TLS, one connection for each pair of nodes.
//!
//! Promises: an event stream tells, for each peer, `Up`, frames, `Down` in that order; both
//! directions of a link come and go together, so an answer finds a way back as soon as a request
//! could be sent. Nobody but a node of the same cluster gets further than a TLS handshake, except
//! for one join request.
//!
//! How two nodes come to one connection:
//!
//! * The node with the lower number **decides** which connection is the link. It numbers its
//!   decisions; the other side follows the highest number. So both sides always end on the same
//!   connection, whichever side dialled and however attempts cross.
//! * The deciding node dials at once, the other one only after a pause of courtesy: it has to,
//!   because its address may be new to the deciding node.
//!
//! ```text
//!   decider dials:   Hello ──►   ◄── Hello        Start{number} ──►  (link)
//!   other dials:     Hello ──►   ◄── Hello{number}                   (link)
//! ```
//!
//! Where a peer is: a greeting says where its sender listens, so a node that has moved is known by
//! whom it has dialled. Besides, a node may be given addresses at which some peer or other is
//! ([`HostLinks::seek`]).
//!
//! What is known of a peer that is gone: when a connection ends, both sides probe the peer's host
//! at once, where that start of it listened. A refusal proves that the process is gone, because a
//! node listens as long as it lives:
//! `Down` says `Refused`. Anything else is `Lost`; if a later attempt is refused, a second `Down`
//! for the same incarnation says `Refused`.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::authority::NodeCredentials;
use super::frame::FRAME_BYTES_MAX;
use super::identity::NodeUuid;
use super::mesh::{Mesh, Peer};
use super::problem::LinkProblem;
use super::tls;
use crate::links::{Frame, Incarnation, LinkEvent, Links, NodeId};
use crate::task::Runtime;

/// Answers a join request.
pub type JoinHandler = Rc<dyn Fn(Bytes) -> LocalBoxFuture<'static, Bytes>>;

/// What a node needs to have links.
#[derive(Debug)]
pub struct LinksConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// This node's certificate and key.
    pub credentials: NodeCredentials,
    /// This node's data directory.
    pub uuid: NodeUuid,
    /// This start of this node.
    pub incarnation: Incarnation,
}

/// Why a node cannot have links. Nothing was changed.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum BindError {
    /// The operating system refuses the address.
    #[error("cannot listen on {address}: {kind}. Is another process using the port?")]
    Listen {
        /// As given.
        address: SocketAddr,
        /// The operating system's reason.
        kind: io::ErrorKind,
    },
    /// The certificate or key cannot be used.
    #[error("the node's certificate cannot be used: {0}")]
    Credentials(rustls::Error),
}

/// What is known of the link to one peer.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerStatus {
    /// The peer.
    pub peer: NodeId,
    /// Where it is dialled.
    pub address: String,
    /// Its start, while the link is up.
    pub up: Option<Incarnation>,
    /// Why there is no link, or why there was none before this one.
    pub problem: Option<LinkProblem>,
}

/// The links of one node. The node listens as long as this value lives.
pub struct HostLinks {
    mesh: Rc<Mesh>,
    address: SocketAddr,
    events: RefCell<Option<mpsc::UnboundedReceiver<LinkEvent>>>,
}

impl HostLinks {
    /// Starts to listen. Use it inside [`super::run`].
    pub async fn bind(runtime: Runtime, config: LinksConfig) -> Result<Self, BindError> {
        let credentials = &config.credentials;
        let acceptor = tls::server_config(credentials).map_err(BindError::Credentials)?;
        let connector = tls::client_config(credentials).map_err(BindError::Credentials)?;
        let failed = |error: io::Error| BindError::Listen {
            address: config.listen,
            kind: error.kind(),
        };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (sender, events) = mpsc::unbounded_channel();
        let (acceptor, connector) = (acceptor.into(), connector.into());
        let mesh = Mesh::new(runtime, &config, acceptor, connector, sender, address);
        mesh.spawn("link-accept", mesh.clone().accept_all(listener));
        Ok(Self {
            mesh,
            address,
            events: RefCell::new(Some(events)),
        })
    }

    /// Where this node listens.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Answers join requests from now on; without a handler they are turned away.
    pub fn set_join_handler(&self, handler: JoinHandler) {
        *self.mesh.join_handler.borrow_mut() = Some(handler);
    }

    /// Looks for peers at these addresses, too: `host:port`, whoever of them is there. Certificates
    /// say who it is.
    pub fn seek(&self, addresses: impl IntoIterator<Item = String>) {
        let mut sought = self.mesh.sought.borrow_mut();
        sought.extend(addresses.into_iter().map(|address| (address, None)));
    }

    /// Resolves when a peer has lost its link since this was last asked, or is a new one; one
    /// caller hears of it.
    pub async fn peer_unlinked(&self) {
        self.mesh.unlinked.notified().await;
    }

    /// The state of the link to each peer, in the order of their numbers.
    pub fn status(&self) -> Vec<PeerStatus> {
        let peers = self.mesh.peers.borrow();
        let status = |peer: &Rc<Peer>| PeerStatus {
            peer: peer.node,
            address: peer.present_address(),
            up: peer.link.borrow().as_ref().map(|link| link.incarnation),
            problem: peer.problem.borrow().clone(),
        };
        peers.values().map(status).collect()
    }
}

impl Links for HostLinks {
    fn local_node(&self) -> NodeId {
        self.mesh.local
    }

    fn local_incarnation(&self) -> Incarnation {
        self.mesh.incarnation
    }

    fn set_peers(&self, peers: Vec<(NodeId, String)>) {
        self.mesh.set_peers(peers);
    }

    fn send(&self, to: NodeId, frame: Frame) {
        let bytes = frame.header.len() + frame.payload.len();
        if bytes > FRAME_BYTES_MAX {
            tracing::error!(%to, bytes, "dropped a frame above {FRAME_BYTES_MAX} bytes");
            return;
        }
        let link = self
            .mesh
            .peers
            .borrow()
            .get(&to)
            .and_then(|peer| peer.link.borrow().clone());
        if let Some(link) = link {
            link.send(frame);
        }
    }

    fn take_events(&self) -> mpsc::UnboundedReceiver<LinkEvent> {
        self.events
            .borrow_mut()
            .take()
            .expect("the events of a node's links are taken once")
    }
}

impl Drop for HostLinks {
    fn drop(&mut self) {
        for (_, task) in std::mem::take(&mut *self.mesh.tasks.borrow_mut()) {
            task.abort();
        }
        for (_, peer) in std::mem::take(&mut *self.mesh.peers.borrow_mut()) {
            peer.stop_dialling();
        }
    }
}
