//! What the state has learned to remember since the first format of snapshots.
//!
//! A snapshot of format 1 is the state as it was in the first version. One of format 2 has a
//! supplement after it, which older versions do not know. It is written only if there is
//! something in it: as long as nobody uses what is new here, older versions read every snapshot.

use std::collections::BTreeMap;

use holdfast_runtime::NodeId;
use holdfast_wire::VolumeId;
use serde::{Deserialize, Serialize};

use super::front::Front;
use super::records::{ClusterState, Growth, Office};

/// The formats of the supplement itself, its first byte. The second has [`Later`] behind the
/// first, the third [`Latest`] behind both, the fourth [`Placement`] behind all; each is written
/// only if there is something in what it adds.
const FORMAT: u8 = 1;
const FORMAT_LATER: u8 = 2;
const FORMAT_LATEST: u8 = 3;
const FORMAT_PLACEMENT: u8 = 4;

/// See the module's header.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Supplement {
    growing: BTreeMap<VolumeId, Growth>,
    fronts: BTreeMap<VolumeId, Front>,
}

/// What was added to the supplement later.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Later {
    disk_failures: BTreeMap<NodeId, Vec<u64>>,
}

/// What came after that.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Latest {
    last_open: BTreeMap<VolumeId, Office>,
}

/// What rebalancing needs to know.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Placement {
    placed: BTreeMap<VolumeId, NodeId>,
    rebalancing_off: bool,
}

impl ClusterState {
    /// The supplement in bytes; empty if there is nothing in it.
    pub(crate) fn encode_supplement(&self) -> Vec<u8> {
        let supplement = Supplement {
            growing: self.growing.clone(),
            fronts: self.fronts.clone(),
        };
        let later = Later {
            disk_failures: self.disk_failures.clone(),
        };
        let latest = Latest {
            last_open: self.last_open.clone(),
        };
        let placement = Placement {
            placed: self.placed.clone(),
            rebalancing_off: self.rebalancing_off,
        };
        let encoded = if placement != Placement::default() {
            let all = (supplement, later, latest, placement);
            postcard::to_extend(&all, vec![FORMAT_PLACEMENT])
        } else if latest != Latest::default() {
            postcard::to_extend(&(supplement, later, latest), vec![FORMAT_LATEST])
        } else if later != Later::default() {
            postcard::to_extend(&(supplement, later), vec![FORMAT_LATER])
        } else if supplement != Supplement::default() {
            postcard::to_extend(&supplement, vec![FORMAT])
        } else {
            return Vec::new();
        };
        encoded.expect("plain data always encodes")
    }

    /// Takes what [`Self::encode_supplement`] gave; false if it is of a newer format or damaged.
    pub(crate) fn decode_supplement(&mut self, bytes: &[u8]) -> bool {
        let (later, latest) = (Later::default(), Latest::default());
        let placement = Placement::default();
        let decoded = match bytes.split_first() {
            None => Ok((Supplement::default(), later, latest, placement)),
            Some((&FORMAT, body)) => {
                postcard::from_bytes(body).map(|supplement| (supplement, later, latest, placement))
            }
            Some((&FORMAT_LATER, body)) => postcard::from_bytes(body)
                .map(|(supplement, later)| (supplement, later, latest, placement)),
            Some((&FORMAT_LATEST, body)) => postcard::from_bytes(body)
                .map(|(supplement, later, latest)| (supplement, later, latest, placement)),
            Some((&FORMAT_PLACEMENT, body)) => postcard::from_bytes(body),
            Some(_) => return false,
        };
        let Ok((supplement, later, latest, placement)) = decoded else {
            return false;
        };
        let Supplement { growing, fronts } = supplement;
        (self.growing, self.fronts) = (growing, fronts);
        (self.disk_failures, self.last_open) = (later.disk_failures, latest.last_open);
        (self.placed, self.rebalancing_off) = (placement.placed, placement.rebalancing_off);
        true
    }
}
