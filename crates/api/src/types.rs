//! What goes over the wire. Sizes are in bytes, times in milliseconds.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

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
    /// Names of the volumes it owns.
    pub owns: Vec<String>,
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
    /// What it does for each volume that it owns.
    pub owners: Vec<OwnerReport>,
    /// Its links to the other nodes.
    pub links: Vec<LinkStatus>,
    /// The oldest operation that its initiators wait for, volume by volume.
    #[serde(default)]
    pub oldest_io: Vec<OldestIo>,
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
    /// Copies brought back in this view.
    pub resyncs: Vec<Resync>,
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
    /// Nodes have not made copies of a slice that is written to for the first time.
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

/// A wanted volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVolume {
    /// 1 to 63 lower-case letters, digits, `-` and `.`.
    pub name: String,
    /// Size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// Copies of all data.
    #[serde(default = "default_copies")]
    pub copies: u32,
    /// 512 or 4096.
    #[serde(default = "default_block_size")]
    pub block_size: u32,
    /// How initiators prove themselves.
    #[serde(default)]
    pub authentication: Authentication,
    /// iSCSI names of the initiators that may log in; if none is named, everyone with the
    /// credentials may.
    #[serde(default)]
    pub initiators: Vec<String>,
    /// Whether a login at a node that does not own the volume is sent to the owner.
    #[serde(default)]
    pub redirect_to_owner: bool,
}

/// A wanted change to a volume. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeChange {
    /// The new size in bytes, a multiple of 4096 and not below the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The size that the volume is believed to have; if it has another one, it is not resized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_size_bytes: Option<u64>,
    /// Drops the access list: everyone with the credentials may log in.
    #[serde(default)]
    pub allow_anyone: bool,
    /// iSCSI names of initiators that may log in. Once one has been named, nobody else may.
    #[serde(default)]
    pub allow_initiators: Vec<String>,
    /// iSCSI names of initiators to take off the access list. Their sessions end.
    #[serde(default)]
    pub deny_initiators: Vec<String>,
    /// Whether a login at a node that does not own the volume is sent to the owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_to_owner: Option<bool>,
    /// Voids every CHAP secret but the present one, and ends the sessions that used one.
    #[serde(default)]
    pub revoke_old_secrets: bool,
}

/// A wanted new CHAP secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSecret {
    /// How long the old secret is still good for logins, in seconds; at most a year.
    #[serde(default = "default_grace_s")]
    pub grace_s: u64,
    /// Voids every old secret at once, and ends the sessions that used one.
    #[serde(default)]
    pub revoke: bool,
}

fn default_grace_s() -> u64 {
    24 * 3600
}

/// Which nodes to list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WhichNodes {
    /// Also those that were evicted.
    #[serde(default)]
    #[param(required = false)]
    pub evicted: bool,
}

/// A wanted new owner of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOwner {
    /// The node's number.
    pub node: u64,
    /// The volume's view, as it was seen: refused if somebody else has changed the owner since.
    #[serde(default)]
    pub view: Option<u64>,
    /// The move only spreads load. Otherwise the choice is remembered, and the volume is not
    /// moved elsewhere to spread load.
    #[serde(default)]
    pub balance: bool,
}

/// The answer to a new CHAP secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RotatedSecret {
    /// How to log in from now on, shown this once.
    pub credentials: ChapCredentials,
    /// Until when the old secret is good for logins, in milliseconds since the Unix epoch;
    /// absent if it is not any more.
    pub old_until_unix_ms: Option<u64>,
}

fn default_copies() -> u32 {
    3
}

fn default_block_size() -> u32 {
    512
}

/// How initiators prove themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Authentication {
    /// They need not: whoever reaches a portal can read and write the volume.
    None,
    /// The initiator proves itself by CHAP.
    #[default]
    Chap,
    /// Both sides do.
    MutualChap,
}

/// Names and secrets of CHAP. The secrets are shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChapCredentials {
    /// The initiator's name.
    pub username: String,
    /// The initiator's secret.
    pub secret: String,
    /// The target's name, for mutual CHAP.
    pub target_username: Option<String>,
    /// The target's secret, for mutual CHAP.
    pub target_secret: Option<String>,
}

/// The answer to a created volume.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedVolume {
    /// The volume.
    pub volume: VolumeStatus,
    /// How to log in; absent if nobody has to.
    pub credentials: Option<ChapCredentials>,
}

/// Whether a volume serves I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// It serves I/O.
    Open,
    /// Its new owner is taking over; I/O waits.
    TakingOver,
    /// No node is up that could own it.
    NoOwner,
}

/// How many copies the slices of a volume have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Redundancy {
    /// Slices of the volume.
    pub slices: u64,
    /// Slices with every wanted copy in sync on a running node.
    pub full: u64,
    /// The fewest such copies that any slice has.
    pub copies_least: u32,
}

/// The copies of a volume on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Holder {
    /// The node.
    pub node: u64,
    /// Slices of which it has a copy.
    pub slices: u64,
    /// Those among them that are in sync.
    pub in_sync: u64,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeStatus {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Whether it serves I/O.
    pub state: VolumeState,
    /// What this means and what is waited for.
    pub explanation: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// The size that it is growing to; absent if it is not being resized.
    pub growing_to_bytes: Option<u64>,
    /// Logical block size.
    pub block_size: u32,
    /// Wanted copies.
    pub copies: u32,
    /// Copies there are.
    pub redundancy: Redundancy,
    /// Where they are.
    pub holders: Vec<Holder>,
    /// The node that orders its I/O.
    pub owner: Option<u64>,
    /// The view in which the owner took office.
    pub view: u64,
    /// iSCSI name of its target.
    pub target: String,
    /// The logical unit number.
    pub lun: u16,
    /// Portals through which it can be reached now.
    pub portals: Vec<String>,
    /// Its NAA identifier, as `/dev/disk/by-id/wwn-0x…` shows it.
    pub naa: String,
    /// How initiators prove themselves.
    pub authentication: Authentication,
    /// Until when an earlier CHAP secret is still good for logins, in milliseconds since the
    /// Unix epoch; absent if none is.
    pub old_secret_until_unix_ms: Option<u64>,
    /// iSCSI names of the initiators that may log in; absent if everyone with the credentials
    /// may, and empty if nobody may.
    pub initiators: Option<Vec<String>>,
    /// Whether a login at a node that does not own the volume is sent to the owner.
    pub redirect_to_owner: bool,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// Age of the oldest operation that an initiator waits for, at whichever node; absent if
    /// none waits.
    #[serde(default)]
    pub oldest_io_ms: Option<u64>,
    /// Whether the owner's part below was told by the owner.
    pub told: Knowledge,
    /// What the owner does.
    pub owner_report: Option<OwnerReport>,
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

impl std::fmt::Debug for ChapCredentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ChapCredentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for CreatedVolume {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("CreatedVolume")
            .field("volume", &self.volume)
            .field("credentials", &self.credentials)
            .finish()
    }
}
