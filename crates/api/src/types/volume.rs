//! Volumes: what is wanted of them, and what is told.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Knowledge, OwnerReport};

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
    /// Slices of the volume that have a place.
    pub slices: u64,
    /// Slices with every wanted copy in sync on a running node.
    pub full: u64,
    /// The fewest such copies that any slice has.
    pub copies_least: u32,
}

impl Redundancy {
    /// Whether nothing is missing.
    pub fn is_full(&self) -> bool {
        self.full == self.slices
    }
}

/// One slice of a volume that has a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SliceStatus {
    /// Its number in the volume, from zero.
    pub slice: u64,
    /// Its copies.
    pub copies: Vec<SliceCopy>,
}

/// One copy of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SliceCopy {
    /// The node that has it.
    pub node: u64,
    /// Whether it holds every acknowledged write.
    pub in_sync: bool,
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
