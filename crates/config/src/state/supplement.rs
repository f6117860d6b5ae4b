//! What the state has learned to remember since the first format of snapshots.
//!
//! A snapshot of format 1 is the state as it was in the first version. One of format 2 has a
//! supplement after it, which older versions do not know. It is written only if there is
//! something in it: as long as nobody uses what is new here, older versions read every snapshot.

use std::collections::BTreeMap;

use holdfast_wire::VolumeId;
use serde::{Deserialize, Serialize};

use super::front::Front;
use super::records::{ClusterState, Growth};

/// The format of the supplement itself, its first byte.
const FORMAT: u8 = 1;

/// See the module's header.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Supplement {
    growing: BTreeMap<VolumeId, Growth>,
    fronts: BTreeMap<VolumeId, Front>,
}

impl ClusterState {
    /// The supplement in bytes; empty if there is nothing in it.
    pub(crate) fn encode_supplement(&self) -> Vec<u8> {
        let supplement = Supplement {
            growing: self.growing.clone(),
            fronts: self.fronts.clone(),
        };
        if supplement == Supplement::default() {
            return Vec::new();
        }
        postcard::to_extend(&supplement, vec![FORMAT]).expect("plain data always encodes")
    }

    /// Takes what [`Self::encode_supplement`] gave; false if it is of a newer format or damaged.
    pub(crate) fn decode_supplement(&mut self, bytes: &[u8]) -> bool {
        let supplement = match bytes.split_first() {
            None => Supplement::default(),
            Some((&FORMAT, body)) => match postcard::from_bytes(body) {
                Ok(supplement) => supplement,
                Err(_) => return false,
            },
            Some(_) => return false,
        };
        let Supplement { growing, fronts } = supplement;
        (self.growing, self.fronts) = (growing, fronts);
        true
    }
}
