//! Asks other nodes for what only they know or can do, over the links between nodes: these are
//! there whether or not a node's API serves other machines, know both sides by their certificates,
//! and are gone round where one is cut.
//!
//! All nodes are asked at the same time, and none is waited for beyond [`LIMIT`]: what holds a
//! listing up is one limit at most, however many nodes say nothing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use holdfast_config::state::{ClusterState, NodeStatus as Recorded};
use holdfast_node::{Node, ScrubOrder as NodeScrubOrder};
use holdfast_runtime::host::HostLinks;
use holdfast_runtime::{Frame, Incarnation, Instant, NodeId, Rpc, RpcError, Service, ambient};
use holdfast_wire::VolumeId;
use holdfast_wire::status::{
    ForgetStalls, Holding, Look, OrderScrub, ScrubAction as ScrubWord, StatusReply, StatusRequest,
    status_request::Body,
};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::reports;
use crate::types::{OwnerReport, ScrubAction, SelfReport};

/// Longer than a healthy node takes by far, shorter than a person's patience.
pub(crate) const LIMIT: Duration = Duration::from_secs(1);
/// A node that gave no answer is not asked again for so long.
const SILENT_FOR: Duration = Duration::from_secs(2);
/// Volumes of which an older version is told what their owner does.
const OLDER_OWNERS_MAX: usize = 1000;

/// Why a node has not said how it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    /// It does not count as running, so it was not asked.
    NotRunning,
    /// No link leads there.
    NoLink,
    /// It was asked, and said nothing for [`LIMIT`].
    NoAnswer,
    /// It said something that this version does not understand.
    Garbled,
}

impl Silence {
    /// To follow the node's name.
    pub(crate) fn text(self) -> String {
        match self {
            Self::NotRunning => "does not run".into(),
            Self::NoLink => "cannot be reached: no link leads there".into(),
            Self::NoAnswer => format!("has given no answer for {} s", LIMIT.as_secs()),
            Self::Garbled => "gave an answer that this version does not understand".into(),
        }
    }
}

/// What nodes have said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    pub(crate) reports: BTreeMap<NodeId, SelfReport>,
    /// What owners said of the volumes that were named.
    pub(crate) owners: BTreeMap<VolumeId, OwnerReport>,
    pub(crate) silences: BTreeMap<NodeId, Silence>,
    /// Whether nodes were asked what their copies take.
    pub(crate) copies: bool,
}

impl Heard {
    pub(crate) fn note(&mut self, node: NodeId, answer: Result<Answer, Silence>) {
        match answer {
            Ok(Answer { report, owners, .. }) => {
                self.reports.extend(report.map(|report| (node, report)));
                let owners = owners.into_iter();
                self.owners
                    .extend(owners.map(|owner| (VolumeId(owner.volume), owner)));
            }
            Err(silence) => {
                self.silences.insert(node, silence);
            }
        }
    }
}

/// What one node has said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) report: Option<SelfReport>,
    pub(crate) owners: Vec<OwnerReport>,
    /// What its copies of each volume take, in bytes.
    pub(crate) holdings: Vec<(VolumeId, u64)>,
}

/// The form in which older versions ask and answer: an empty message, and JSON.
#[derive(Serialize, Deserialize)]
struct OlderReport {
    #[serde(flatten)]
    report: SelfReport,
    owners: Vec<OwnerReport>,
}

/// Answers other nodes that ask how this one is, and obeys what is ordered through them.
pub(crate) fn serve(
    rpc: &Rpc,
    part: impl Fn() -> Option<(std::rc::Rc<Node>, std::rc::Rc<HostLinks>)> + 'static,
) {
    rpc.serve(Service::Status, move |asked| {
        let said = part().and_then(|(node, links)| answer(&node, &links, &asked.frame.header));
        Box::pin(std::future::ready(said.map(Frame::new)))
    });
}

fn answer(node: &Node, links: &HostLinks, asked: &[u8]) -> Option<Vec<u8>> {
    if asked.is_empty() {
        let mut owners = node.owner_statuses();
        owners.truncate(OLDER_OWNERS_MAX);
        let older = OlderReport {
            report: reports::own_report(node, links, true),
            owners: owners
                .iter()
                .map(|status| reports::owner_report(node, status))
                .collect(),
        };
        return serde_json::to_vec(&older).ok();
    }
    let request = StatusRequest::decode(asked).ok()?;
    let look = match request.body? {
        Body::Look(look) => look,
        Body::OrderScrub(order) => {
            obey(node, order);
            summary()
        }
        Body::ForgetStalls(ForgetStalls {}) => {
            node.context().runtime.forget_stalls();
            summary()
        }
    };
    let summary = look
        .summary
        .then(|| reports::own_report(node, links, look.copies));
    let owners = look.volumes.iter();
    let owners = owners.filter_map(|volume| node.owner_status(VolumeId(*volume)));
    let reply = StatusReply {
        summary: summary.map(reports::to_wire),
        owners: owners
            .map(|status| reports::owner_to_wire(reports::owner_report(node, &status)))
            .collect(),
        holdings: match look.holdings {
            true => (node.held_bytes().into_iter())
                .map(|(VolumeId(volume), bytes)| Holding { volume, bytes })
                .collect(),
            false => Vec::new(),
        },
    };
    Some(reply.encode_to_vec())
}

fn summary() -> Look {
    Look {
        summary: true,
        volumes: Vec::new(),
        holdings: false,
        copies: true,
    }
}

fn obey(node: &Node, order: OrderScrub) {
    node.order_scrub(match order.action() {
        ScrubWord::Unknown => return,
        ScrubWord::Start => NodeScrubOrder::Start,
        ScrubWord::Pause => NodeScrubOrder::Pause,
        ScrubWord::Resume => NodeScrubOrder::Resume,
    });
}

/// Nodes that have said nothing just now.
#[derive(Default)]
pub(crate) struct Peers {
    silent: RefCell<BTreeMap<NodeId, (Incarnation, Instant)>>,
}

impl Peers {
    /// Asks these nodes, except this one, how they are, owners what they do for `volumes`, and, if
    /// `copies` says so, what the nodes' copies take. A node that said nothing just now is not
    /// waited for again: pages of a listing follow one another faster than it would come to itself.
    pub(crate) async fn ask(
        &self,
        rpc: &Rpc,
        state: &ClusterState,
        wanted: &BTreeSet<NodeId>,
        volumes: &BTreeMap<NodeId, Vec<u64>>,
        copies: bool,
    ) -> Heard {
        let now = ambient::current().now();
        let others = state.nodes.iter();
        let others = others.filter(|(node, _)| **node != rpc.local_node() && wanted.contains(node));
        let asked = others.map(|(node, record)| {
            let look = Look {
                summary: true,
                volumes: volumes.get(node).cloned().unwrap_or_default(),
                holdings: false,
                copies,
            };
            let silent = self.silent.borrow().get(node).copied();
            let silent = silent.is_some_and(|(incarnation, since)| {
                incarnation == record.incarnation && now.saturating_since(since) < SILENT_FOR
            });
            async move {
                let answer = if !matches!(record.status, Recorded::Up | Recorded::Leaving) {
                    Err(Silence::NotRunning)
                } else if silent {
                    Err(Silence::NoAnswer)
                } else {
                    request(rpc, *node, Body::Look(look)).await
                };
                (*node, record.incarnation, silent, answer)
            }
        });
        let mut heard = Heard {
            copies,
            ..Heard::default()
        };
        for (node, incarnation, was_silent, answer) in join_all(asked).await {
            let mut silent = self.silent.borrow_mut();
            match &answer {
                Err(Silence::NoAnswer) if was_silent => {}
                Err(Silence::NoAnswer) => {
                    silent.insert(node, (incarnation, ambient::current().now()));
                }
                Err(Silence::NotRunning | Silence::NoLink | Silence::Garbled) | Ok(_) => {
                    silent.remove(&node);
                }
            }
            heard.note(node, answer);
        }
        heard
    }
}

/// What a node holds, and what its copies of each volume take.
pub(crate) async fn holdings(rpc: &Rpc, node: NodeId) -> Result<Answer, Silence> {
    let look = Look {
        holdings: true,
        ..summary()
    };
    request(rpc, node, Body::Look(look)).await
}

/// Passes an order to the scrub on to the node it is for.
pub(crate) async fn order_scrub(
    rpc: &Rpc,
    node: NodeId,
    action: ScrubAction,
) -> Result<Answer, Silence> {
    let action = match action {
        ScrubAction::Start => ScrubWord::Start,
        ScrubAction::Pause => ScrubWord::Pause,
        ScrubAction::Resume => ScrubWord::Resume,
    };
    let action = action.into();
    order(rpc, node, Body::OrderScrub(OrderScrub { action })).await
}

/// Lets a node begin anew with its longest stalls.
pub(crate) async fn forget_stalls(rpc: &Rpc, node: NodeId) -> Result<Answer, Silence> {
    order(rpc, node, Body::ForgetStalls(ForgetStalls {})).await
}

/// An older version answers every order with how it is, and obeys none.
async fn order(rpc: &Rpc, node: NodeId, body: Body) -> Result<Answer, Silence> {
    let frame = called(rpc, node, body).await?;
    match is_older(&frame) {
        true => Err(Silence::Garbled),
        false => understood(node, &frame),
    }
}

async fn request(rpc: &Rpc, node: NodeId, body: Body) -> Result<Answer, Silence> {
    understood(node, &called(rpc, node, body).await?)
}

async fn called(rpc: &Rpc, node: NodeId, body: Body) -> Result<Frame, Silence> {
    let request = StatusRequest { body: Some(body) };
    let frame = Frame::new(request.encode_to_vec());
    let answer = rpc.call(node, Service::Status, frame, LIMIT).await;
    answer.map_err(|error| match error {
        RpcError::TimedOut => Silence::NoAnswer,
        RpcError::LinkDown => Silence::NoLink,
    })
}

fn is_older(frame: &Frame) -> bool {
    frame.header.first() == Some(&b'{')
}

fn understood(node: NodeId, frame: &Frame) -> Result<Answer, Silence> {
    let answer = if is_older(frame) {
        let older: Option<OlderReport> = serde_json::from_slice(&frame.header).ok();
        older.map(|OlderReport { report, owners }| Answer {
            report: Some(report),
            owners,
            holdings: Vec::new(),
        })
    } else {
        let reply = StatusReply::decode(frame.header.clone()).ok();
        reply.map(|reply| Answer {
            report: reply.summary.map(reports::from_wire),
            owners: (reply.owners.into_iter())
                .map(reports::owner_from_wire)
                .collect(),
            holdings: (reply.holdings.into_iter())
                .map(|Holding { volume, bytes }| (VolumeId(volume), bytes))
                .collect(),
        })
    };
    let answer = answer.ok_or(Silence::Garbled)?;
    // Each says who it is: an answer from elsewhere would be a fault of the links.
    match &answer.report {
        Some(report) if report.id != node.0 => Err(Silence::Garbled),
        Some(_) | None => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLDER: &str = r#"{"id":3,"incarnation":2,"registered":true,"usage":{"home_bytes":9,
        "home_used_bytes":1,"home_reclaimable_bytes":0,"home_map_bytes":0,"home_free_bytes":8,
        "home_collected_bytes":0,"journal_bytes":5,"journal_used_bytes":0},"integrity":{
        "damaged":false,"damaged_blocks":0,"lost_blocks":0,"healed_blocks":0,"scrub_paused":true,
        "scrub":null,"last_scrub":null},"space":"low","owners":[{"volume":7,"view":4,"open":false,
        "waits_for":"leases from copies on node 1","waiting":{"kind":"lease","nodes":[1],
        "for_ms":12},"age_ms":8,"takeover_ms":null,"resyncs":[{"slice":1,"node":2,
        "copied_bytes":4096,"finished":true}]}],"links":[{"node":1,"up":false,
        "problem":"refused"}],"oldest_io":[{"volume":7,"age_ms":3}]}"#;

    #[test]
    fn what_an_older_version_says_of_itself_is_understood() {
        let frame = Frame::new(OLDER.as_bytes().to_vec());
        let answer = understood(NodeId(3), &frame).unwrap();
        let report = answer.report.expect("a report");
        assert_eq!((report.incarnation, report.usage.home_bytes), (2, 9));
        assert_eq!(answer.owners[0].volume, 7);
        assert_eq!(answer.owners[0].resyncs.len(), 1);
        assert_eq!(report.oldest_io[0].age_ms, 3);
        assert!(is_older(&frame));
    }

    #[test]
    fn what_nobody_understands_or_comes_from_elsewhere_is_said_to_be_so() {
        let said = |bytes: &[u8], node| {
            let answer = understood(NodeId(node), &Frame::new(bytes.to_vec()));
            answer.map(drop)
        };
        assert_eq!(said(OLDER.as_bytes(), 4), Err(Silence::Garbled));
        assert_eq!(said(b"{\"id\":3}", 3), Err(Silence::Garbled));
        assert_eq!(said(&[0xff; 9], 3), Err(Silence::Garbled));
    }
}
