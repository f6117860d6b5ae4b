//! The exchange by which a machine without a certificate asks a cluster to take it in.

use std::time::Duration;

use bytes::Bytes;
use rustls_pki_types::ServerName;
use thiserror::Error;
use tokio_rustls::{TlsConnector, TlsStream};

use super::authority::AuthorityFingerprint;
use super::frame::{self, GREETING_BYTES_MAX, Kind, LinkRefusal};
use super::problem::LinkProblem;
use super::stream::{FrameStream, connect, prepare};
use super::tls;

/// The time limit of the whole exchange, on both sides.
pub const TIME_LIMIT: Duration = Duration::from_secs(10);
/// The limit of a request and of a reply.
pub const MESSAGE_BYTES_MAX: usize = GREETING_BYTES_MAX;

/// Why a join request has no answer.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum JoinError {
    /// The node cannot be reached; nothing was sent.
    #[error("{address} cannot be reached: {problem}. Check the address in the token")]
    Unreachable {
        /// As given.
        address: String,
        /// What was seen.
        problem: LinkProblem,
    },
    /// Whoever answers has no certificate of the authority in the token; nothing was sent.
    #[error("the node at {address} is not of the cluster that made the token. Make a new token")]
    OtherCluster {
        /// As given.
        address: String,
    },
    /// The connection failed on the way; the cluster may or may not have seen the request.
    #[error("the join request to {address} got no answer: {problem}")]
    NoAnswer {
        /// As given.
        address: String,
        /// What was seen.
        problem: LinkProblem,
    },
    /// The request is above the limit; nothing was sent.
    #[error("a join request of {bytes} bytes, {MESSAGE_BYTES_MAX} are allowed")]
    TooLong {
        /// Its size.
        bytes: usize,
    },
}

/// Sends an opaque request to the node at `address` (`host:port`), having made sure that it
/// belongs to the cluster with this authority, and gives the answer. At most
/// [`MESSAGE_BYTES_MAX`] bytes each, [`TIME_LIMIT`] for all.
pub async fn request(
    address: &str,
    authority: AuthorityFingerprint,
    request: Bytes,
) -> Result<Bytes, JoinError> {
    if request.len() > MESSAGE_BYTES_MAX {
        return Err(JoinError::TooLong {
            bytes: request.len(),
        });
    }
    let deadline = tokio::time::Instant::now() + TIME_LIMIT;
    let timed_out = |_| Err(LinkProblem::TimedOut);
    let mut stream = tokio::time::timeout_at(deadline, greet(address, authority))
        .await
        .unwrap_or_else(timed_out)
        .map_err(|problem| match problem {
            LinkProblem::RefusedByUs(LinkRefusal::OtherCluster) => JoinError::OtherCluster {
                address: address.into(),
            },
            problem => JoinError::Unreachable {
                address: address.into(),
                problem,
            },
        })?;
    let exchange = async {
        stream
            .send(&frame::encode(Kind::JoinRequest, &request))
            .await?;
        stream.expect(Kind::JoinReply).await
    };
    tokio::time::timeout_at(deadline, exchange)
        .await
        .unwrap_or_else(|_| Err(LinkProblem::TimedOut))
        .map_err(|problem| JoinError::NoAnswer {
            address: address.into(),
            problem,
        })
}

async fn greet(address: &str, authority: AuthorityFingerprint) -> Result<FrameStream, LinkProblem> {
    let config = tls::join_config(authority).map_err(LinkProblem::Tls)?;
    let tcp = prepare(connect(address).await?)?;
    // The verifier looks at the authority, not at this name.
    let name = ServerName::try_from("join.holdfast").expect("a valid name");
    let tls = TlsConnector::from(config).connect(name, tcp).await?;
    Ok(FrameStream::new(TlsStream::from(tls)))
}
