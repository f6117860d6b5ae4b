//! What goes over the wire. Sizes are in bytes, times in milliseconds.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod node;
mod volume;

pub use node::*;
pub use volume::*;

/// A wanted cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCluster {
    /// A name for people, 1 to 63 characters.
    pub name: String,
}

/// Where the node that was asked stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterPhase {
    /// The node belongs to no cluster.
    NoCluster,
    /// The node is being started.
    Starting,
    /// No majority of the config group answers: I/O may go on, changes cannot be made.
    NoMajority,
    /// Everything that is wanted is there.
    Healthy,
    /// I/O goes on with less redundancy than wanted.
    Degraded,
    /// Some volume serves no I/O, or its I/O stands still.
    Unavailable,
}

/// Two nodes without a link to one another. Other nodes pass their messages on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MissingLink {
    /// Their numbers.
    pub nodes: [u64; 2],
    /// For how long.
    pub for_ms: u64,
}

/// The cluster as seen by the node that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterStatus {
    /// Where it stands.
    pub phase: ClusterPhase,
    /// Why, what is waited for, and what can be done: a sentence each.
    pub explanations: Vec<String>,
    /// The cluster's name.
    pub name: Option<String>,
    /// The cluster's id.
    pub id: Option<String>,
    /// The node that was asked.
    pub node: Option<u64>,
    /// The leader of the config group, if known.
    pub leader: Option<u64>,
    /// Nodes that vote in the config group: a majority of them has to run.
    pub voters: Vec<u64>,
    /// The newest view.
    pub view: u64,
    /// Nodes that are up.
    pub nodes_up: u64,
    /// All nodes.
    pub nodes: u64,
    /// Pairs of nodes that take part and have no link to one another.
    #[serde(default)]
    pub missing_links: Vec<MissingLink>,
    /// Volumes that serve I/O.
    pub volumes_open: u64,
    /// All volumes.
    pub volumes: u64,
}

/// A wanted join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// How long it can be used, in seconds; at most 30 days.
    pub expires_s: u64,
}

/// A join token, good for one node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenText {
    /// For `holdfast node start --join`. Secret, shown this once.
    pub token: String,
    /// When it ends, in milliseconds since the Unix epoch.
    pub expires_unix_ms: u64,
}

// Secrets stay out of debug output.

impl std::fmt::Debug for JoinTokenText {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("JoinTokenText")
            .field("expires_unix_ms", &self.expires_unix_ms)
            .finish_non_exhaustive()
    }
}
