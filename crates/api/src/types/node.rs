//! Nodes: what is told of them, and by them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::Problem;

/// Whether something is known of what only a node itself can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Knowledge {
    /// The node has said it just now.
    Known,
    /// The node was not asked successfully.
    Unknown,
}

/// Whether a node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Admitted, and never started since.
    Admitted,
    /// It takes part.
    Up,
    /// It is about to stop and owns nothing any more.
    Leaving,
    /// Its process is gone or silent.
    Down,
    /// It was taken out for good; its copies are made anew on other nodes.
    Evicted,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// Its number.
    pub id: u64,
    /// Whether it takes part.
    pub state: NodeState,
    /// What this means and what is waited for.
    pub explanation: String,
    /// How often its process has been started.
    pub incarnation: u64,
    /// `host:port` for other nodes.
    pub link_address: String,
    /// `host:port` of its REST API; empty if it serves this machine only.
    pub api_address: String,
    /// `host:port` of its iSCSI portal.
    pub portal_address: String,
    /// Version of its software.
    pub version: String,
    /// Whether it leads the config group.
    pub leader: bool,
    /// Names of volumes it owns: the first hundred. `GET /v1/volumes?owner=` lists all.
    pub owns: Vec<String>,
    /// How many volumes it owns.
    #[serde(default)]
    pub owned: u64,
    /// Whether the fields below were told by the node.
    pub told: Knowledge,
    /// How full its store is.
    pub usage: Option<StoreUsage>,
    /// What its disk has lost, and the search for it.
    pub integrity: Option<Integrity>,
    /// Whether its home fills up.
    pub space: Option<SpaceLevel>,
    /// Its links to the other nodes.
    pub links: Vec<LinkStatus>,
    /// How long its thread was held by single steps.
    #[serde(default)]
    pub stalls: Option<Stalls>,
    /// Copies of slices that it has.
    #[serde(default)]
    pub copies: u64,
    /// Bytes of these copies.
    #[serde(default)]
    pub copies_bytes: Option<u64>,
    /// How far it is drained; absent if it is not.
    #[serde(default)]
    pub drain: Option<DrainStatus>,
}

/// How far a node is drained: its copies are made anew on other nodes, then taken out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainStatus {
    /// When it began, in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// Nothing is left on the node: it can be removed.
    pub drained: bool,
    /// Copies that are left on the node.
    pub copies_left: u64,
    /// Volumes that it still owns.
    pub owned_left: u64,
    /// Bytes that are still to be copied; absent if the node does not say what it holds.
    pub bytes_left: Option<u64>,
    /// Bytes that were copied so far. What an owner has copied that ended since is missing.
    pub bytes_moved: u64,
    /// Bytes a second, within the last minute; absent if that is not known yet.
    pub bytes_per_s: Option<u64>,
    /// Time until the end at this rate; absent if that cannot be told.
    pub ends_in_s: Option<u64>,
    /// Why it does not go on, and what can be done: a sentence each. Empty while it does.
    pub waits_for: Vec<String>,
}

/// What draining a node would move. Nothing has been done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainPlan {
    /// The node.
    pub node: u64,
    /// Copies that would be made anew on other nodes.
    pub copies: u64,
    /// Their bytes; absent if the node does not say what it holds.
    pub bytes: Option<u64>,
    /// Volumes that would get another owner, at once.
    pub owned: u64,
    /// Nodes that would take the copies.
    pub targets: Vec<DrainTarget>,
    /// What would hold it up, and what can be done: a sentence each.
    pub waits_for: Vec<String>,
    /// Why it would be refused; absent if it would not.
    pub refused: Option<Problem>,
}

/// A node that takes copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainTarget {
    /// The node.
    pub node: u64,
    /// Bytes that it has room for; absent if it does not say.
    pub free_bytes: Option<u64>,
}

/// How long single steps have held a node's thread. Everything else that the node does waits
/// meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stalls {
    /// The longest step, in microseconds. Time in which other processes had the processor is
    /// taken off.
    pub longest_us: u64,
    /// Its task; empty if nothing has held the thread for long.
    pub longest_in: String,
    /// Steps longer than 20 ms.
    pub count: u64,
    /// For how long this has been measured.
    pub measured_ms: u64,
}

/// Whether a node's home fills up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SpaceLevel {
    /// There is room.
    #[default]
    Enough,
    /// Above the first threshold: time to plan for more.
    Low,
    /// Above the second threshold: writes to new blocks will soon be refused.
    Critical,
}

/// How full a node's store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreUsage {
    /// Capacity for block data.
    pub home_bytes: u64,
    /// Part of it in use.
    pub home_used_bytes: u64,
    /// Space of blocks that were overwritten or unmapped, until it is collected.
    pub home_reclaimable_bytes: u64,
    /// Space of the map of blocks.
    pub home_map_bytes: u64,
    /// Space that holds nothing.
    pub home_free_bytes: u64,
    /// Bytes that collecting has moved since the node's start.
    pub home_collected_bytes: u64,
    /// Size of the journal.
    pub journal_bytes: u64,
    /// Part of it that cannot be reused yet.
    pub journal_used_bytes: u64,
}

/// What a node's disk has lost, and the scrub that looks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Integrity {
    /// Something is damaged, as far as that is known, and not healed yet.
    pub damaged: bool,
    /// Blocks of 4 KiB known to be damaged. Other copies give them back within seconds.
    pub damaged_blocks: u64,
    /// Of those, blocks that no other copy in sync had when they were last asked for: they read
    /// as errors until they are written again.
    pub lost_blocks: u64,
    /// Blocks that other copies gave back since the node started.
    pub healed_blocks: u64,
    /// Whether an operator has stopped the scrub.
    pub scrub_paused: bool,
    /// The pass under way.
    pub scrub: Option<ScrubPass>,
    /// The pass before.
    pub last_scrub: Option<ScrubPass>,
}

/// One pass of the scrub over everything that a node's disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScrubPass {
    /// When it began, in milliseconds since the Unix epoch.
    pub begun_unix_ms: u64,
    /// When it ended.
    pub ended_unix_ms: Option<u64>,
    /// Bytes read and compared with their checksums.
    pub bytes: u64,
    /// Blocks found damaged.
    pub damaged_blocks: u64,
}

/// What a node's scrub shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScrubOrder {
    /// Which of these.
    pub action: ScrubAction,
}

/// What a scrub can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ScrubAction {
    /// Begin a pass now, from the start; a pass under way is given up.
    Start,
    /// Stand still until told to go on; outlasts a restart of the node.
    Pause,
    /// Go on.
    Resume,
}

/// One link of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkStatus {
    /// The node at the other end.
    pub node: u64,
    /// Whether it is up.
    pub up: bool,
    /// Why it is not, as far as known.
    pub problem: Option<String>,
}

/// What a node knows of itself alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SelfReport {
    /// The node.
    pub id: u64,
    /// Which start of it.
    pub incarnation: u64,
    /// Whether the config group counts this start as running.
    pub registered: bool,
    /// How full its store is.
    pub usage: StoreUsage,
    /// What its disk has lost, and the search for it.
    pub integrity: Integrity,
    /// Whether its home fills up.
    #[serde(default)]
    pub space: SpaceLevel,
    /// Volumes that it owns.
    #[serde(default)]
    pub owned: u64,
    /// Those among them that it serves.
    #[serde(default)]
    pub serving: u64,
    /// Its links to the other nodes.
    pub links: Vec<LinkStatus>,
    /// The oldest operation that its initiators wait for, volume by volume: the thousand volumes
    /// that have waited longest.
    #[serde(default)]
    pub oldest_io: Vec<OldestIo>,
    /// How long its thread was held by single steps.
    #[serde(default)]
    pub stalls: Stalls,
    /// Bytes of the copies that the cluster places on it; absent from an older version, and where
    /// nobody asked for them.
    #[serde(default)]
    pub copies_bytes: Option<u64>,
    /// What it does for nodes that are drained.
    #[serde(default)]
    pub drains: Vec<DrainShare>,
}

/// What one node does for a node that is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainShare {
    /// The node that is drained.
    pub node: u64,
    /// Bytes copied by this node's owners since the drain, or this node, began.
    pub copied_bytes: u64,
    /// Of those, bytes in copies that are not in sync yet.
    pub unfinished_bytes: u64,
    /// Bytes a second, within the last minute; absent if that is not known yet.
    pub bytes_per_s: Option<u64>,
}

/// The oldest operation of initiators that one node has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OldestIo {
    /// The volume's number.
    pub volume: u64,
    /// How long ago it arrived.
    pub age_ms: u64,
}

/// What an owner is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OwnerReport {
    /// The volume's number.
    pub volume: u64,
    /// The view in which it took office.
    pub view: u64,
    /// Whether it serves.
    pub open: bool,
    /// What it waits for, in words; empty if nothing.
    pub waits_for: String,
    /// The same for programs.
    #[serde(default)]
    pub waiting: Option<Wait>,
    /// Time since it took office.
    pub age_ms: u64,
    /// Time from taking office to serving.
    pub takeover_ms: Option<u64>,
    /// Copies brought back in this view: at most sixty-four, those under way first.
    pub resyncs: Vec<Resync>,
    /// All copies that are being brought back.
    #[serde(default)]
    pub resyncs_under_way: u64,
    /// All copies that were brought back in this view.
    #[serde(default)]
    pub resyncs_finished: u64,
    /// Bytes copied for all of them.
    #[serde(default)]
    pub resynced_bytes: u64,
}

/// What an owner waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Wait {
    /// What kind of thing.
    pub kind: WaitKind,
    /// The nodes that it depends on, where it is nodes.
    pub nodes: Vec<u64>,
    /// For how long.
    pub for_ms: u64,
}

/// What an owner can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WaitKind {
    /// A takeover: answers of copies.
    Fence,
    /// A takeover: a node with a complete copy in sync.
    CompleteCopy,
    /// A takeover: copies are made identical.
    Reconcile,
    /// A takeover: a copy did not answer meanwhile.
    CopyUnderRepair,
    /// A takeover: a copy's node restarted meanwhile.
    RestartedCopy,
    /// A takeover: the config group's agreement.
    Opening,
    /// Copies of a slice that is written to for the first time are not there, or not agreed on.
    Placement,
    /// Writes: acknowledgements of copies.
    Acknowledgement,
    /// Writes: the config group's agreement to go on without copies.
    Removal,
    /// Reads: leases from copies.
    Lease,
}

/// One copy that is, or was, brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Resync {
    /// Which slice of the volume.
    pub slice: u32,
    /// Where the copy is.
    pub node: u64,
    /// Bytes copied.
    pub copied_bytes: u64,
    /// Whether the copy is in sync again.
    pub finished: bool,
}

impl WaitKind {
    /// The word for it, as JSON has it.
    pub(crate) fn word(self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(word)) => word,
            Ok(_) | Err(_) => unreachable!("a variant without fields is a word"),
        }
    }

    /// The kind of this word, if this version knows it.
    pub(crate) fn from_word(word: &str) -> Option<Self> {
        serde_json::from_value(word.into()).ok()
    }
}
