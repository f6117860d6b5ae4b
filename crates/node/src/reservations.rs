//! A volume's reservations as the SCSI layer sees them: config state, enforced by the owner.
//!
//! A change is proposed to the config group and judged when it is applied. It is answered after
//! it is durable there, this node has applied it, the owner has settled under it
//! (`holdfast_volume`, `reservations`), and the nodes whose initiators are to be told know of it
//! or did not answer in a moment.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use holdfast_config::state::{Change, Outcome, Refusal as StateRefusal};
use holdfast_reservation::{Action, Effects, Nexus, Request, ReservationTable};
use holdfast_runtime::NodeId;
use holdfast_scsi::reservation::{ReservationError, Reservations};
use holdfast_wire::VolumeId;

use crate::node::Node;

/// How long the config group gets to decide; with the owner's time to settle it stays below the
/// minute that initiators wait.
const PROPOSAL_LIMIT: Duration = Duration::from_secs(15);
const BARRIER_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two attempts to end the SPC-2 reservation of a lost nexus.
const RELEASE_PAUSE: Duration = Duration::from_secs(1);

/// See the module's header.
pub struct VolumeReservations {
    node: Rc<Node>,
    volume: VolumeId,
}

impl VolumeReservations {
    /// The reservations of a volume, seen from a node.
    pub fn new(node: Rc<Node>, volume: VolumeId) -> Self {
        Self { node, volume }
    }
}

async fn apply(
    node: &Node,
    volume: VolumeId,
    request: Request,
) -> Result<Effects, ReservationError> {
    let before = node.state().reservations(volume).revision();
    let concerns_all = request.action == Action::ResetUnit;
    let moved_to = match &request.action {
        Action::Move { to, .. } => Some(to.target_port),
        Action::Register { .. }
        | Action::Reserve(_)
        | Action::Release(_)
        | Action::Clear
        | Action::Preempt { .. }
        | Action::ReserveUnit
        | Action::ReleaseUnit
        | Action::ResetUnit => None,
    };
    let change = Change::ChangeReservations { volume, request };
    let effects = match node.propose(change, PROPOSAL_LIMIT).await {
        Ok(Outcome::Reserved(effects)) => effects,
        Ok(Outcome::Refused(StateRefusal::Reservation(refusal))) => return Err(refusal.into()),
        Ok(Outcome::Refused(StateRefusal::VolumeUnknown(_))) => return Err(ReservationError::Gone),
        Ok(other) => {
            tracing::error!(?other, "not an answer to a change of reservations");
            return Err(ReservationError::Undecided);
        }
        Err(error) => {
            tracing::warn!(%volume, %error, "a change of reservations was not decided in time");
            return Err(ReservationError::Undecided);
        }
    };
    // The proposer has applied its change: this revision is that of the change or a later one.
    let table = node.state().reservations(volume);
    let revision = table.revision();
    if let Err(error) = node.portal.settle(volume, revision).await {
        tracing::warn!(%volume, %error, "no owner confirmed a change of reservations");
        return Err(ReservationError::Undecided);
    }
    let told = table.notices_since(before).into_iter().flatten();
    let ports = told.map(|(nexus, _)| nexus.target_port).chain(moved_to);
    let mut nodes: BTreeSet<NodeId> = ports.map(|port| NodeId(u64::from(port))).collect();
    let state = node.state();
    if concerns_all {
        nodes.extend(state.nodes.keys());
    }
    let up = |node: &NodeId| state.running_incarnation(*node).is_some();
    node.portal
        .spread(volume, revision, nodes.into_iter().filter(up))
        .await;
    Ok(effects)
}

impl Reservations for VolumeReservations {
    fn table(&self) -> Rc<ReservationTable> {
        self.node.state().reservations(self.volume)
    }

    fn refresh(&self) -> LocalBoxFuture<'static, bool> {
        let group = self.node.group.clone();
        async move { group.read_barrier(BARRIER_LIMIT).await.is_ok() }.boxed_local()
    }

    fn apply(
        &self,
        request: Request,
    ) -> LocalBoxFuture<'static, Result<Effects, ReservationError>> {
        let (node, volume) = (self.node.clone(), self.volume);
        async move { apply(&node, volume, request).await }.boxed_local()
    }

    /// Tries until it is done: nobody else would end the reservation as long as this node runs.
    fn nexus_lost(&self, nexus: &Nexus) {
        if self.table().unit_holder() != Some(nexus) {
            return;
        }
        let (node, volume) = (self.node.clone(), self.volume);
        let request = Request {
            nexus: nexus.clone(),
            key: 0,
            action: Action::ReleaseUnit,
        };
        let runtime = node.context.runtime.clone();
        runtime.spawn("release-reserve", async move {
            while node.state().reservations(volume).unit_holder() == Some(&request.nexus)
                && node.failure.borrow().is_none()
            {
                // Whatever comes of it is seen in the table.
                let _ = apply(&node, volume, request.clone()).await;
                node.context.runtime.sleep(RELEASE_PAUSE).await;
            }
        });
    }

    /// The table is config state, which does.
    fn survives_power_loss(&self) -> bool {
        true
    }
}
