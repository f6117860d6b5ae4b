//! What owners and portals need of their node.

use std::rc::Rc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use holdfast_config::state::{Change, ClusterState, Outcome};
use holdfast_replica::Holder;
use holdfast_runtime::{Incarnation, NodeId, Rpc, Runtime};
use holdfast_store::Store;
use tokio::sync::{Semaphore, watch};

use crate::bounds::VolumeBounds;
use crate::copied::CopiedBytes;
use crate::lease_clerk::LeaseClerk;

/// Copies whose blocks the owners of one node copy at the same time, for all volumes together: a
/// node that is drained or comes back may concern thousands of them, and reads and writes share
/// disks and threads with that.
pub const COPYING_MAX: usize = 4;

/// The config group as an owner sees it.
pub trait Config {
    /// The state as last applied on this node.
    fn state(&self) -> Rc<ClusterState>;
    /// Changes whenever another state has been applied.
    fn watch(&self) -> watch::Receiver<u64>;
    /// Proposes a change; `None` if its outcome is not known within `limit`.
    fn propose(&self, change: Change, limit: Duration) -> LocalBoxFuture<'static, Option<Outcome>>;
    /// After `true`, [`Config::state`] has everything that was decided before the call.
    fn read_barrier(&self, limit: Duration) -> LocalBoxFuture<'static, bool>;
    /// Time since this node was last in touch with a majority of the group.
    fn out_of_touch(&self) -> Duration;
}

/// One node's parts that its owners and portals share.
#[derive(Clone)]
pub struct Context {
    /// Time, tasks and randomness.
    pub runtime: Runtime,
    /// Messages to other nodes and to this one.
    pub rpc: Rc<Rpc>,
    /// The config group.
    pub config: Rc<dyn Config>,
    /// This node's copies.
    pub holder: Rc<Holder>,
    /// The store under them.
    pub store: Rc<Store>,
    /// Asks other nodes for leases.
    pub leases: Rc<LeaseClerk>,
    /// A permit for each copy whose blocks owners of this node may copy at the same time.
    pub copying: Rc<Semaphore>,
    /// What owners have copied for nodes that are drained.
    pub copied: Rc<CopiedBytes>,
    /// When an owner's rarer work is due.
    pub bounds: VolumeBounds,
}

impl Context {
    /// This node.
    pub fn node(&self) -> NodeId {
        self.rpc.local_node()
    }

    /// This start of this node.
    pub fn incarnation(&self) -> Incarnation {
        self.rpc.local_incarnation()
    }
}
