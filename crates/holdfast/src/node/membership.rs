//! How a node comes to belong to a cluster: it founds one, or joins one with a token.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use holdfast_config::state::{Admission, Change, Outcome};
use holdfast_node::Node;
use holdfast_runtime::host::{
    AuthorityError, ClusterAuthority, ClusterId, JoinHandler, JoinToken, NodeCredentials, NodeUuid,
    join,
};
use holdfast_runtime::{NodeId, Runtime};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::identity::{Founding, Membership};
use crate::failure::Failure;

/// Shorter than the whole exchange may take, so that the answer still gets through.
const PROPOSAL_LIMIT: Duration = Duration::from_secs(8);
const _: () = assert!(PROPOSAL_LIMIT.as_secs() < join::TIME_LIMIT.as_secs());

/// What a joining node says. Travels in TLS, to a node of the cluster that the token names.
#[derive(Serialize, Deserialize)]
struct JoinRequest {
    secret: [u8; 16],
    uuid: [u8; 16],
    link_address: String,
}

/// What the cluster answers.
#[derive(Serialize, Deserialize)]
enum JoinReply {
    /// Taken in.
    Admitted {
        /// Certificate, authority's certificate and private key, PEM.
        credentials: String,
        /// The other nodes.
        peers: Vec<(NodeId, String)>,
    },
    /// Not taken in; why, in words for the operator.
    Refused(String),
}

/// Why a node was not taken in.
#[derive(Debug, Error)]
enum JoinProblem {
    #[error("the cluster did not take this node in: {0}")]
    Refused(String),
    #[error("the cluster's answer cannot be read; is it of another version?")]
    Unreadable,
    #[error("the cluster's answer cannot be used: {0}")]
    Credentials(#[from] AuthorityError),
    #[error("the answer is not of the cluster that made the token")]
    OtherCluster,
}

/// The membership of the first node of a new cluster.
pub(super) fn found(runtime: &Runtime, name: &str) -> Result<Membership, AuthorityError> {
    let authority = ClusterAuthority::generate(ClusterId::random(runtime))?;
    let credentials = authority.issue(NodeId(1))?;
    let founding = Founding {
        name: name.to_owned(),
        authority: authority.to_pem(),
    };
    Ok(Membership::new(&credentials, Vec::new(), Some(founding)))
}

/// Asks the cluster of the token to take this node in. Asking again after a lost answer gives
/// the same number.
pub(super) async fn join(
    token: &JoinToken,
    uuid: NodeUuid,
    link_address: String,
) -> Result<Membership, Failure> {
    let request = JoinRequest {
        secret: token.secret,
        uuid: uuid.0,
        link_address,
    };
    let request = serde_json::to_vec(&request).map_err(Failure::of)?;
    let reply = join::request(&token.address, token.authority, request.into())
        .await
        .map_err(|error| match error {
            join::JoinError::Unreachable { .. } => Failure::Unreachable(error.to_string()),
            join::JoinError::NoAnswer { .. } => Failure::Undecided(format!(
                "{error}. Start this node again with the same directory and token"
            )),
            join::JoinError::OtherCluster { .. } | join::JoinError::TooLong { .. } => {
                Failure::of(error)
            }
        })?;
    accept(token, &reply).map_err(Failure::of)
}

fn accept(token: &JoinToken, reply: &[u8]) -> Result<Membership, JoinProblem> {
    let reply = serde_json::from_slice(reply).map_err(|_| JoinProblem::Unreadable)?;
    match reply {
        JoinReply::Refused(reason) => Err(JoinProblem::Refused(reason)),
        JoinReply::Admitted { credentials, peers } => {
            let credentials = NodeCredentials::from_pem(&credentials)?;
            if credentials.authority_fingerprint() != token.authority {
                return Err(JoinProblem::OtherCluster);
            }
            Ok(Membership::new(&credentials, peers, None))
        }
    }
}

/// Answers joining nodes in the name of this node's cluster.
pub(super) fn handler(node: &Rc<Node>) -> JoinHandler {
    let node = Rc::downgrade(node);
    Rc::new(move |request| {
        let node = node.upgrade();
        async move {
            let reply = match node {
                Some(node) => admit(&node, &request)
                    .await
                    .unwrap_or_else(JoinReply::Refused),
                None => JoinReply::Refused("the node that was asked is stopping".into()),
            };
            match serde_json::to_vec(&reply) {
                Ok(bytes) if bytes.len() <= join::MESSAGE_BYTES_MAX => Bytes::from(bytes),
                Ok(_) | Err(_) => Bytes::from_static(b"{\"Refused\":\"the answer is too long\"}"),
            }
        }
        .boxed_local()
    })
}

async fn admit(node: &Node, request: &[u8]) -> Result<JoinReply, String> {
    let request: JoinRequest = serde_json::from_slice(request)
        .map_err(|_| "the request cannot be read; is it of another version?".to_owned())?;
    let admission = Admission {
        secret_hash: Sha256::digest(request.secret).into(),
        uuid: request.uuid,
        link_address: request.link_address,
        now_unix_ms: node.context().runtime.unix_time_ms(),
    };
    let outcome = node
        .propose(Change::Admit(admission), PROPOSAL_LIMIT)
        .await
        .map_err(|error| error.to_string())?;
    let number = match outcome {
        Outcome::Admitted(number) => number,
        Outcome::Refused(refusal) => return Err(refusal.to_string()),
        Outcome::Done | Outcome::Created(_) | Outcome::Reserved(_) | Outcome::Placed { .. } => {
            unreachable!("an admission has no other good outcome")
        }
    };
    let state = node.state();
    let authority = state
        .cluster
        .as_ref()
        .and_then(|cluster| std::str::from_utf8(&cluster.authority).ok())
        .and_then(|text| ClusterAuthority::from_pem(text).ok())
        .ok_or_else(|| "the cluster's certificate authority cannot be read".to_owned())?;
    let credentials = authority.issue(number).map_err(|error| error.to_string())?;
    let peers = state
        .nodes
        .iter()
        .filter(|(other, _)| **other != number)
        .map(|(other, record)| (*other, record.link_address.clone()))
        .collect();
    tracing::info!(node = %number, "a node joined");
    Ok(JoinReply::Admitted {
        credentials: credentials.to_pem(),
        peers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(authority: &ClusterAuthority) -> JoinToken {
        JoinToken {
            authority: authority.fingerprint(),
            secret: [3; 16],
            address: "127.0.0.1:1".into(),
        }
    }

    #[test]
    fn an_answer_of_another_cluster_is_not_believed() {
        let ours = ClusterAuthority::generate(ClusterId([1; 16])).unwrap();
        let theirs = ClusterAuthority::generate(ClusterId([2; 16])).unwrap();
        let reply = |authority: &ClusterAuthority| {
            serde_json::to_vec(&JoinReply::Admitted {
                credentials: authority.issue(NodeId(4)).unwrap().to_pem(),
                peers: Vec::new(),
            })
            .unwrap()
        };
        let membership = accept(&token(&ours), &reply(&ours)).unwrap();
        assert_eq!(membership.node, NodeId(4));
        let refused = accept(&token(&ours), &reply(&theirs));
        assert!(matches!(refused, Err(JoinProblem::OtherCluster)));
    }

    #[test]
    fn garbage_for_an_answer_is_an_error() {
        let ours = ClusterAuthority::generate(ClusterId([1; 16])).unwrap();
        for garbage in [
            &b""[..],
            b"{}",
            b"\xff\xff",
            b"{\"Admitted\":{\"credentials\":\"\",\"peers\":[]}}",
        ] {
            assert!(accept(&token(&ours), garbage).is_err());
        }
    }

    #[test]
    fn a_founder_is_number_one_and_keeps_the_authority_until_it_is_agreed() {
        holdfast_runtime::host::run(async |runtime| {
            let membership = found(&runtime, "test").unwrap();
            assert_eq!(membership.node, NodeId(1));
            let founding = membership.founding.unwrap();
            let authority = ClusterAuthority::from_pem(&founding.authority).unwrap();
            assert_eq!(authority.cluster(), membership.cluster);
        });
    }
}
