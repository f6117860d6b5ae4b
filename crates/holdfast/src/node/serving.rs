//! The serving node: recovery, the cluster, initiators, and the way out.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use holdfast_api::Administration;
use holdfast_config::group::GroupOptions;
use holdfast_config::state::{ClusterIdentity, Fronts, Refusal};
use holdfast_iscsi::{Limits, Server};
use holdfast_node::{Failure as NodeFailure, Node, NodeError, NodeIdentity, NodeOptions};
use holdfast_runtime::Runtime;
use holdfast_runtime::host::{HostLinks, LinkProblem, LinkRefusal, LinksConfig};
use tokio::sync::{oneshot, watch};

use super::front::{Front, KnownTargets, is_over};
use super::identity::Founding;
use super::listen;
use super::membership;
use super::process::{Founder, Process, refuse};
use crate::failure::Failure;

/// How long founding a cluster of one may take.
const FOUNDING_LIMIT: Duration = Duration::from_secs(10);
/// After the portal could not listen: its address may be on its way, or its port still taken.
const PORTAL_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether the other nodes refuse this one.
const REFUSAL_PERIOD: Duration = Duration::from_secs(1);
/// Most other nodes have to say for so long that they know no such node: one that has just been
/// admitted is heard of sooner.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);

/// Serves until told to stop, or until the node fails.
pub(super) async fn run(mut process: Process, founder: Founder) -> Result<(), Failure> {
    let (node, links) = match start(&mut process).await {
        Ok(started) => started,
        Err(failure) => {
            refuse(founder, &failure);
            return Err(failure);
        }
    };
    let link_address = process.ports.link.to_string();
    let administration = Administration::new(node.clone(), links.clone(), link_address);
    if let Some(reply) = founder {
        let _ = reply.send(Ok(administration.cluster().await));
    }
    tracing::info!(
        node = %node.id(),
        incarnation = node.context().incarnation().0,
        links = %process.ports.link,
        api = process.ports.api_address,
        "started"
    );
    let outcome = serve(&mut process, &node, &links, &administration).await;
    if let Err(failure) = &outcome {
        tracing::error!(%failure, "the node ends");
    }
    outcome
}

/// Recovers what the directory holds and connects to the other nodes.
async fn start(process: &mut Process) -> Result<(Rc<Node>, Rc<HostLinks>), Failure> {
    process
        .identity
        .update(|identity| identity.incarnation.0 += 1)
        .map_err(Failure::of)?;
    let credentials = process.identity.credentials().map_err(Failure::of)?;
    let credentials = credentials.expect("a member has credentials");
    let identity = process.identity.identity.clone();
    let member = identity.membership.expect("a member has a membership");
    let links = HostLinks::bind(
        process.runtime.clone(),
        LinksConfig {
            listen: process.ports.link,
            credentials,
            uuid: identity.uuid,
            incarnation: identity.incarnation,
        },
    );
    let links = Rc::new(links.await.map_err(Failure::of)?);
    links.seek(process.peers.iter().cloned());
    let options = NodeOptions {
        identity: NodeIdentity {
            cluster: member.cluster.0,
            uuid: identity.uuid.0,
        },
        link_address: process.ports.link.to_string(),
        api_address: process.ports.api_address.clone(),
        portal_address: process.ports.portal.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        seeds: member.peers.clone(),
        journal_bytes: identity.journal_bytes,
        home_bytes: identity.home_bytes,
        home_preallocated: identity.home_preallocated,
        scrub: Default::default(),
        group: GroupOptions {
            may_create: !member.has_run,
            ..GroupOptions::default()
        },
        fullness: process.thresholds,
        balance: Default::default(),
        gossip: Default::default(),
        store_bounds: Default::default(),
        volume_bounds: Default::default(),
    };
    let starting = Node::start(
        process.runtime.clone(),
        process.directory.clone(),
        links.clone(),
        options,
    );
    let what = "recovering what the data directory holds";
    let node = process
        .desk
        .starting(what, starting)
        .await
        .map_err(Failure::of)?;
    let recovery = node.recovery();
    if !recovery.created {
        tracing::info!(
            records = recovery.records,
            end = ?recovery.end,
            holes = recovery.holes,
            damaged = recovery.damaged_records,
            "recovered"
        );
    }
    if let Some(founding) = &member.founding {
        let founding = found(&node, member.cluster.0, founding);
        process
            .desk
            .starting("founding the cluster", founding)
            .await?;
    }
    process
        .identity
        .update(|identity| {
            if let Some(member) = &mut identity.membership {
                member.has_run = true;
                member.founding = None;
            }
        })
        .map_err(Failure::of)?;
    links.set_join_handler(membership::handler(&node));
    Ok((node, links))
}

async fn found(node: &Node, id: [u8; 16], founding: &Founding) -> Result<(), Failure> {
    let cluster = ClusterIdentity {
        id,
        name: founding.name.clone(),
        authority: founding.authority.clone().into_bytes(),
    };
    match node.found(cluster, FOUNDING_LIMIT).await {
        // An earlier start got as far as this and did not live to note it.
        Ok(()) | Err(NodeError::Refused(Refusal::AlreadyFounded)) => Ok(()),
        Err(error) => Err(Failure::of(error)),
    }
}

/// What ends a serving node.
enum End {
    Told,
    Failed(Failure),
}

async fn serve(
    process: &mut Process,
    node: &Rc<Node>,
    links: &HostLinks,
    administration: &Rc<Administration>,
) -> Result<(), Failure> {
    let mut portal: Option<Portal> = None;
    let mut portal_due = process.runtime.now();
    let mut failure = node.failure();
    let mut state = node.watch();
    let mut unknown = std::pin::pin!(unknown_to_others(&process.runtime, node, links));
    let end = loop {
        state.mark_unchanged();
        if let Some(portal) = &mut portal {
            portal.follow(node);
        } else if node.is_registered() && process.runtime.now() >= portal_due {
            // Only now does this node know every volume: earlier it would turn initiators away.
            match listen::portal(process.ports.portal).await {
                Ok(listener) => {
                    tracing::info!(address = %process.ports.portal, "the iSCSI portal serves");
                    let limits = limits(process.descriptors);
                    portal = Some(Portal::open(&process.runtime, node, listener, limits));
                }
                // The node's copies are needed all the same.
                Err(failure) => {
                    tracing::error!(%failure, "the iSCSI portal does not serve");
                    portal_due = process.runtime.now() + PORTAL_PAUSE;
                }
            }
        }
        let retry = portal.is_none() && node.is_registered();
        tokio::select! {
            request = process.desk.next() => {
                let answer = administration.clone().answer(request);
                process.runtime.spawn("api-answer", answer);
            }
            _ = state.changed() => {}
            () = process.runtime.sleep_until(portal_due), if retry => {}
            _ = process.stop.wait_for(|stop| *stop) => break End::Told,
            failed = failed(&mut failure) => break End::Failed(Failure::of(failed)),
            () = refused_by_others(&process.runtime, links) => break End::Failed(ghost(node)),
            () = &mut unknown => break End::Failed(Failure::of(Refusal::Evicted(node.id()))),
            error = portal_ended(&mut portal) => {
                tracing::error!(%error, "the iSCSI portal listens no more");
                portal = None;
                portal_due = process.runtime.now() + PORTAL_PAUSE;
            }
        }
    };
    if let End::Failed(failure) = end {
        return Err(failure);
    }
    // Initiators move to other portals first, while I/O goes on; then the volumes move.
    let leaving = async {
        if let Some(portal) = portal {
            portal.close().await;
        }
        node.shutdown().await;
    };
    let mut leaving = std::pin::pin!(leaving);
    loop {
        tokio::select! {
            biased;
            () = &mut leaving => break,
            request = process.desk.next() => {
                let answer = administration.clone().answer(request);
                process.runtime.spawn("api-answer", answer);
            }
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// The open portal.
struct Portal {
    server: Rc<Server>,
    shutdown: watch::Sender<bool>,
    ended: oneshot::Receiver<io::Result<()>>,
    targets: KnownTargets,
    fronts: Fronts,
}

impl Portal {
    fn open(
        runtime: &Runtime,
        node: &Rc<Node>,
        listener: tokio::net::TcpListener,
        limits: Limits,
    ) -> Self {
        let server = Server::new(Front::new(node.clone()), limits);
        let (shutdown, stop) = watch::channel(false);
        let (end, ended) = oneshot::channel();
        let serving = server.clone();
        runtime.spawn("iscsi", async move {
            let _ = end.send(serving.serve(listener, stop).await);
        });
        Self {
            server,
            shutdown,
            ended,
            targets: KnownTargets::of(&node.state()),
            fronts: node.state().fronts.clone(),
        }
    }

    /// Ends the sessions of volumes that are gone, of initiators that may not use one any more,
    /// and those that began with a secret that is void now.
    fn follow(&mut self, node: &Node) {
        let state = node.state();
        if self.fronts != state.fronts {
            self.server.end_sessions(|session| is_over(&state, session));
            self.fronts.clone_from(&state.fronts);
        }
        for name in self.targets.follow(&state) {
            self.server.drop_target(&name);
        }
    }

    /// Asks initiators to leave and waits until they have, or their time is over.
    async fn close(self) {
        self.shutdown.send_replace(true);
        // An error is that of a listener, and there is none to keep any more.
        let _ = self.ended.await;
    }
}

/// Descriptors that initiators must not take: links to other nodes, the API, files.
const DESCRIPTORS_KEPT: u64 = 512;

/// What initiators may use, of a process that may have so many files and connections open. Were
/// they to take all, the node could not reach the others any more.
fn limits(descriptors: u64) -> Limits {
    let usual = Limits::default();
    let left = descriptors.saturating_sub(DESCRIPTORS_KEPT);
    let left = usize::try_from(left.max(descriptors / 2)).unwrap_or(usize::MAX);
    if left < usual.connections {
        tracing::warn!(
            descriptors,
            connections = left,
            "the limit of open files (`ulimit -n`, LimitNOFILE) is low: initiators get fewer \
             connections than usual"
        );
    }
    Limits {
        connections: usual.connections.min(left),
        ..usual
    }
}

async fn portal_ended(portal: &mut Option<Portal>) -> io::Error {
    match portal {
        None => std::future::pending().await,
        Some(portal) => match (&mut portal.ended).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => io::ErrorKind::Interrupted.into(),
        },
    }
}

async fn failed(failure: &mut watch::Receiver<Option<NodeFailure>>) -> NodeFailure {
    match failure.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(failure)) => failure.clone(),
        // The node holds the sender and lives as long as this is asked.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

/// Resolves when another node says that it knows a newer start of this one, or this number with
/// another directory.
async fn refused_by_others(runtime: &Runtime, links: &HostLinks) {
    let refusal = LinkProblem::RefusedByPeer(LinkRefusal::ReusedIdentity);
    loop {
        let status = links.status();
        let mut unlinked = status.iter().filter(|peer| peer.up.is_none()).peekable();
        if unlinked.peek().is_none() {
            links.peer_unlinked().await;
        }
        if unlinked.any(|peer| peer.problem.as_ref() == Some(&refusal)) {
            return;
        }
        runtime.sleep_roughly(REFUSAL_PERIOD).await;
    }
}

/// Resolves when most other nodes have said for a while that they know no such node, although it is
/// registered as far as it knows: it was taken out while no link led to it.
async fn unknown_to_others(runtime: &Runtime, node: &Node, links: &HostLinks) {
    let refusal = LinkProblem::RefusedByPeer(LinkRefusal::UnknownNode);
    let mut since = None;
    loop {
        let status = links.status();
        let refuse = status
            .iter()
            .filter(|peer| peer.up.is_none() && peer.problem.as_ref() == Some(&refusal));
        let is_unknown = node.is_registered() && refuse.count() * 2 > status.len();
        let now = runtime.now();
        let first = *since.get_or_insert(now);
        if !is_unknown {
            since = None;
        } else if now.saturating_since(first) >= UNKNOWN_FOR {
            return;
        }
        runtime.sleep_roughly(REFUSAL_PERIOD).await;
    }
}

fn ghost(node: &Node) -> Failure {
    let stale = Refusal::IncarnationStale(node.id());
    Failure::Failed(format!(
        "the other nodes refuse this one: {stale}. Stop this one, and if its directory is a \
         restored copy, let the node join again with an empty one"
    ))
}
