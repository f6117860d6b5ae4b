//! Why there is no link to a peer.

use std::io;

use rustls::CertificateError;
use thiserror::Error;

use super::frame::{FrameError, LinkRefusal};

/// Why there is no link to a peer, for status displays and logs. Frames that were in flight may
/// be lost; nothing else has changed.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum LinkProblem {
    /// The peer's host refuses connections to its port.
    #[error("the node's process is not running: its host refuses the connection")]
    NotRunning,
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// The address has no meaning to the resolver.
    #[error("the address cannot be resolved")]
    UnknownAddress,
    /// The network reports an error.
    #[error("the connection failed: {0}")]
    Network(io::ErrorKind),
    /// The peer ended the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// The TLS handshake or stream failed, in a way not listed here.
    #[error("TLS failed: {0}")]
    Tls(rustls::Error),
    /// The peer breaks the rules of the link.
    #[error("the peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// More than the link's queue holds was to be sent.
    #[error("the peer does not take its data: {0} bytes are queued for it")]
    Overflow(usize),
    /// This node turned the peer away.
    #[error("this node refuses the peer: {0}")]
    RefusedByUs(LinkRefusal),
    /// The peer turned this node away.
    #[error("the peer refuses this node: {0}")]
    RefusedByPeer(LinkRefusal),
    /// A newer connection took the link over.
    #[error("a newer connection took over")]
    Replaced,
    /// The peer is no longer among this node's peers.
    #[error("the peer was removed")]
    Removed,
}

impl From<io::Error> for LinkProblem {
    fn from(error: io::Error) -> Self {
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            // A bad signature: the other authority goes by the same name.
            Some(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => Self::RefusedByUs(LinkRefusal::OtherCluster),
            Some(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Self::RefusedByUs(LinkRefusal::WrongNode),
            Some(other) => Self::Tls(other.clone()),
            None => match error.kind() {
                io::ErrorKind::ConnectionRefused => Self::NotRunning,
                io::ErrorKind::UnexpectedEof => Self::Closed,
                kind => Self::Network(kind),
            },
        }
    }
}
