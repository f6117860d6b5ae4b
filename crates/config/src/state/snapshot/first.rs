//! The state as formats 1 and 2 of snapshots have it: read, and no longer written.
//!
//! Format 1 is the state as it was in the first version. Format 2 has a supplement after it, for
//! what was added later. Slices are a list: every slice of a volume was placed.

use std::collections::BTreeMap;
use std::rc::Rc;

use holdfast_reservation::ReservationTable;
use holdfast_runtime::NodeId;
use holdfast_wire::{View, VolumeId};
use serde::Deserialize;
#[cfg(test)]
use serde::Serialize;

use super::Head;
use crate::state::front::Front;
use crate::state::records::{
    Chap, ClusterIdentity, ClusterState, Growth, NodeRecord, Office, Owner, TokenRecord,
};
use crate::state::slices::{CopyRecord, Slices};

/// The state of format 1.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct FirstState {
    cluster: Option<ClusterIdentity>,
    view: View,
    nodes: BTreeMap<NodeId, NodeRecord>,
    volumes: BTreeMap<VolumeId, FirstVolume>,
    last_volume: u64,
    tokens: BTreeMap<[u8; 32], TokenRecord>,
}

/// A volume of format 1.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct FirstVolume {
    name: String,
    size_bytes: u64,
    logical_block_bytes: u32,
    slice_bytes: u64,
    copies: u32,
    target_name: String,
    naa: [u8; 16],
    chap: Option<Chap>,
    created_unix_ms: u64,
    owner: Option<Owner>,
    view: View,
    open: bool,
    ever_open: bool,
    /// By index, all of them, each with its copies.
    slices: Vec<Vec<CopyRecord>>,
    reservations: Rc<ReservationTable>,
}

/// The formats of the supplement itself, its first byte. The second has [`Later`] behind the
/// first, the third [`Latest`] behind both, the fourth [`Placement`] behind all; each was written
/// only if there was something in what it adds.
const FORMAT: u8 = 1;
const FORMAT_LATER: u8 = 2;
const FORMAT_LATEST: u8 = 3;
const FORMAT_PLACEMENT: u8 = 4;

/// See the module's header.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct Supplement {
    growing: BTreeMap<VolumeId, Growth>,
    fronts: BTreeMap<VolumeId, Front>,
}

/// What was added to the supplement later.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct Later {
    disk_failures: BTreeMap<NodeId, Vec<u64>>,
}

/// What came after that.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct Latest {
    last_open: BTreeMap<VolumeId, Office>,
}

/// What rebalancing needs to know.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct Placement {
    placed: BTreeMap<VolumeId, NodeId>,
    rebalancing_off: bool,
}

impl ClusterState {
    /// Reads the state of format 1 from the head of `bytes`, and gives what follows it. `None` if
    /// it is damaged.
    pub(crate) fn read_first(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (first, rest): (FirstState, _) = postcard::take_from_bytes(bytes).ok()?;
        let mut state = Self {
            cluster: first.cluster.map(Rc::new),
            view: first.view,
            nodes: Rc::new(first.nodes),
            last_volume: first.last_volume,
            tokens: first.tokens.into_iter().collect(),
            ..Self::default()
        };
        for (id, volume) in first.volumes {
            let slices = volume.slices.into_iter();
            let slices = slices.map(|copies| copies.into_iter().collect());
            let slices: Slices = (0..).zip(slices).collect();
            let indexes: Vec<u32> = slices.iter().map(|(index, _)| index).collect();
            let head = Head {
                name: volume.name,
                size_bytes: volume.size_bytes,
                logical_block_bytes: volume.logical_block_bytes,
                slice_bytes: volume.slice_bytes,
                copies: volume.copies,
                target_name: volume.target_name,
                naa: volume.naa,
                chap: volume.chap,
                created_unix_ms: volume.created_unix_ms,
                owner: volume.owner,
                view: volume.view,
                open: volume.open,
                ever_open: volume.ever_open,
                reservations: volume.reservations,
            };
            state.take_up_volume(id, head, slices)?;
            state.note_waiting(id, &indexes);
        }
        Some((state, rest))
    }

    /// Takes the supplement of format 2; false if it is of a newer format or damaged.
    pub(crate) fn supply(&mut self, bytes: &[u8]) -> bool {
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
        self.growing.extend(growing);
        for (volume, front) in fronts {
            self.fronts.set(volume, front);
        }
        self.disk_failures = later.disk_failures;
        self.last_open.extend(latest.last_open);
        self.placed.extend(placement.placed);
        self.rebalancing_off = placement.rebalancing_off;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl FirstState {
        fn of(state: &ClusterState) -> Self {
            let volumes = state.volumes.iter().map(|(id, record)| {
                let slices = record.slices.values();
                let volume = FirstVolume {
                    name: record.name.clone(),
                    size_bytes: record.size_bytes,
                    logical_block_bytes: record.logical_block_bytes,
                    slice_bytes: record.slice_bytes,
                    copies: record.copies,
                    target_name: record.target_name.clone(),
                    naa: record.naa,
                    chap: record.chap.clone(),
                    created_unix_ms: record.created_unix_ms,
                    owner: record.owner,
                    view: record.view,
                    open: record.open,
                    ever_open: record.ever_open,
                    slices: slices.map(|slice| slice.copies().collect()).collect(),
                    reservations: record.reservations.clone(),
                };
                (*id, volume)
            });
            Self {
                cluster: state.cluster.as_deref().cloned(),
                view: state.view,
                nodes: (*state.nodes).clone(),
                volumes: volumes.collect(),
                last_volume: state.last_volume,
                tokens: state
                    .tokens
                    .iter()
                    .map(|(hash, token)| (*hash, *token))
                    .collect(),
            }
        }
    }

    fn collected<V: Clone>(map: &crate::state::SharedMap<VolumeId, V>) -> BTreeMap<VolumeId, V> {
        map.iter().map(|(id, value)| (*id, value.clone())).collect()
    }

    /// What the version that wrote them would write of what is read: nothing is lost.
    #[test]
    fn snapshots_of_the_first_two_formats_are_read_whole() {
        let with_bytes: [&[u8]; 2] = [
            include_bytes!("../../../fixtures/snapshot-1.bin"),
            include_bytes!("../../../fixtures/snapshot-2.bin"),
        ];
        for (format, bytes) in (1_u8..).zip(with_bytes) {
            assert_eq!(bytes[0], format);
            let (mut state, rest) = ClusterState::read_first(&bytes[1..]).expect("a state");
            let written = postcard::to_stdvec(&FirstState::of(&state)).expect("plain data");
            assert_eq!(written, bytes[1..bytes.len() - rest.len()]);
            assert_eq!((state.volumes.len(), state.nodes.len()), (2, 5));
            let (db, record) = state.volume_by_name("db").expect("db");
            assert_eq!(record.slices.len() as u32, if format == 1 { 4 } else { 6 });
            assert_eq!(
                record.slices.last_index(),
                Some(record.slices.len() as u32 - 1)
            );
            if format == 2 {
                // The sessions of the group, three outcomes, are between the two.
                let at = rest.iter().rposition(|byte| *byte == FORMAT_PLACEMENT);
                let supplement = (0..=at.expect("a supplement"))
                    .find(|at| rest[*at] == FORMAT_PLACEMENT && state.clone().supply(&rest[*at..]));
                let supplement = &rest[supplement.expect("a supplement")..];
                assert!(state.supply(supplement));
                let fronts = state.fronts.from(VolumeId(0));
                let all = (
                    Supplement {
                        growing: collected(&state.growing),
                        fronts: fronts.map(|(id, front)| (id, front.clone())).collect(),
                    },
                    Later {
                        disk_failures: state.disk_failures.clone(),
                    },
                    Latest {
                        last_open: collected(&state.last_open),
                    },
                    Placement {
                        placed: collected(&state.placed),
                        rebalancing_off: state.rebalancing_off,
                    },
                );
                let written = postcard::to_extend(&all, vec![FORMAT_PLACEMENT]);
                assert_eq!(written.expect("plain data"), supplement);
                assert_eq!(state.growing[&db].first_slice, 4);
                assert_eq!(
                    state.front(db).initiators.as_ref().map(|list| list.len()),
                    Some(1)
                );
                assert!(state.rebalancing_off && state.next_end_unix_ms() == Some(10));
            }
            state.check();
        }
    }
}
