//! The state in bytes, piece by piece.
//!
//! A snapshot is a sequence of [`Section`]s up to `End`. Each holds a bounded number of records, so
//! that nobody who writes or reads one stands still for long, however large the state is. A newer
//! version appends kinds of sections; an older one then refuses the snapshot, it does not skip.
//!
//! Indexes are not written: taking records up builds them. Formats 1 and 2, which hold the whole
//! state as one value, are read ([`first`]) and no longer written.

pub(super) mod first;

use std::rc::Rc;

use holdfast_reservation::ReservationTable;
use holdfast_runtime::NodeId;
use holdfast_wire::{View, VolumeId};
use serde::{Deserialize, Serialize};

use super::front::Front;
use super::records::{
    Chap, ClusterIdentity, ClusterState, Growth, NodeRecord, Office, Owner, TokenRecord,
    VolumeRecord,
};
use super::slices::{CopyRecord, CopyStatus, SharedMap, SliceRecord, Slices};

/// Records in one piece: some 100 µs of work.
const PIECE_RECORDS_MAX: usize = 128;

/// Kinds keep their numbers.
#[derive(Serialize, Deserialize)]
enum Section {
    /// What there is one of.
    Cluster(Cluster),
    Nodes(Vec<(NodeId, NodeRecord)>),
    DiskFailures(Vec<(NodeId, Vec<u64>)>),
    Tokens(Vec<([u8; 32], TokenRecord)>),
    Draining(Vec<(NodeId, u64)>),
    /// Records without their slices.
    Volumes(Vec<(VolumeId, Head)>),
    /// Some slices of a volume that came before.
    Slices(VolumeId, Vec<Placement>),
    Fronts(Vec<(VolumeId, Front)>),
    Growing(Vec<(VolumeId, Growth)>),
    LastOpen(Vec<(VolumeId, Office)>),
    Placed(Vec<(VolumeId, NodeId)>),
    End,
}

#[derive(Serialize, Deserialize)]
struct Cluster {
    identity: Option<ClusterIdentity>,
    view: View,
    last_volume: u64,
    rebalancing_off: bool,
}

/// A volume's record without its slices.
#[derive(Serialize, Deserialize)]
struct Head {
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
    reservations: Rc<ReservationTable>,
}

/// How far a slice's index is from the one before it in the section (or from 0), and its copies:
/// twice the node, and one more if the copy is stale.
#[derive(Serialize, Deserialize)]
struct Placement(u32, Vec<u128>);

impl Head {
    fn of(record: &VolumeRecord) -> Self {
        Self {
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
            reservations: record.reservations.clone(),
        }
    }

    fn record(self, slices: Slices) -> VolumeRecord {
        VolumeRecord {
            name: self.name,
            size_bytes: self.size_bytes,
            logical_block_bytes: self.logical_block_bytes,
            slice_bytes: self.slice_bytes,
            copies: self.copies,
            target_name: self.target_name,
            naa: self.naa,
            chap: self.chap,
            created_unix_ms: self.created_unix_ms,
            owner: self.owner,
            view: self.view,
            open: self.open,
            ever_open: self.ever_open,
            slices,
            reservations: self.reservations,
        }
    }

    /// Whether the volume's slices can be numbered.
    fn is_sound(&self) -> bool {
        let slices = self.size_bytes.checked_div(self.slice_bytes);
        slices.is_some_and(|slices| slices < u64::from(u32::MAX))
    }
}

impl Placement {
    fn of(gap: u32, slice: &SliceRecord) -> Self {
        let copies = slice.copies().map(|copy| {
            let stale = copy.status == CopyStatus::Stale;
            u128::from(copy.node.0) << 1 | u128::from(stale)
        });
        Self(gap, copies.collect())
    }

    fn slice(&self) -> Option<SliceRecord> {
        let copy = |packed: &u128| {
            let node = u64::try_from(packed >> 1).ok()?;
            Some(CopyRecord {
                node: NodeId(node),
                status: if packed & 1 == 0 {
                    CopyStatus::InSync
                } else {
                    CopyStatus::Stale
                },
            })
        };
        self.1.iter().map(copy).collect()
    }
}

/// Whether more pieces follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More follow.
    More,
    /// This was the last one.
    Complete,
}

/// A moment of the state, written piece by piece.
pub struct Pieces {
    state: ClusterState,
    next: Next,
}

/// What the next piece begins with.
enum Next {
    Small,
    Volumes(VolumeId),
    Slices(VolumeId, u32),
    Fronts(VolumeId),
    Growing(VolumeId),
    LastOpen(VolumeId),
    Placed(VolumeId),
    End,
    Nothing,
}

impl Iterator for Pieces {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut piece = Vec::new();
        self.next = match self.next {
            Next::Small => {
                self.write_small(&mut piece);
                Next::Volumes(VolumeId(0))
            }
            Next::Volumes(first) => {
                let volumes = self.state.volumes.from(first);
                let heads = volumes.map(|(id, record)| (*id, Head::of(record)));
                let (heads, following) = page(heads);
                put(&mut piece, &Section::Volumes(heads));
                following.map_or(Next::Slices(VolumeId(0), 0), Next::Volumes)
            }
            Next::Slices(volume, index) => self.write_slices(&mut piece, volume, index),
            Next::Fronts(first) => {
                let fronts = self.state.fronts.from(first);
                let (fronts, following) = page(fronts.map(|(id, front)| (id, front.clone())));
                put(&mut piece, &Section::Fronts(fronts));
                following.map_or(Next::Growing(VolumeId(0)), Next::Fronts)
            }
            Next::Growing(first) => {
                let (growing, following) = page(from(&self.state.growing, first));
                put(&mut piece, &Section::Growing(growing));
                following.map_or(Next::LastOpen(VolumeId(0)), Next::Growing)
            }
            Next::LastOpen(first) => {
                let (offices, following) = page(from(&self.state.last_open, first));
                put(&mut piece, &Section::LastOpen(offices));
                following.map_or(Next::Placed(VolumeId(0)), Next::LastOpen)
            }
            Next::Placed(first) => {
                let (placed, following) = page(from(&self.state.placed, first));
                put(&mut piece, &Section::Placed(placed));
                following.map_or(Next::End, Next::Placed)
            }
            Next::End => {
                put(&mut piece, &Section::End);
                Next::Nothing
            }
            Next::Nothing => return None,
        };
        Some(piece)
    }
}

impl Pieces {
    /// What is small by nature.
    fn write_small(&self, piece: &mut Vec<u8>) {
        let state = &self.state;
        let nodes = state.nodes.iter();
        let failures = state.disk_failures.iter();
        let draining = state.draining.iter();
        for section in [
            Section::Cluster(Cluster {
                identity: state.cluster.as_deref().cloned(),
                view: state.view,
                last_volume: state.last_volume,
                rebalancing_off: state.rebalancing_off,
            }),
            Section::Nodes(
                nodes
                    .map(|(node, record)| (*node, record.clone()))
                    .collect(),
            ),
            Section::DiskFailures(failures.map(|(node, at)| (*node, at.clone())).collect()),
            Section::Tokens(
                state
                    .tokens
                    .iter()
                    .map(|(hash, token)| (*hash, *token))
                    .collect(),
            ),
            Section::Draining(draining.map(|(node, since)| (*node, *since)).collect()),
        ] {
            put(piece, &section);
        }
    }

    /// Slices of one or several volumes, beginning with this one.
    fn write_slices(&self, piece: &mut Vec<u8>, volume: VolumeId, index: u32) -> Next {
        let (mut room, mut index) = (PIECE_RECORDS_MAX, index);
        for (id, record) in self.state.volumes.from(volume) {
            if room == 0 {
                return Next::Slices(*id, 0);
            }
            let mut before = 0;
            let some = record.slices.range(index..).take(room);
            let some = some.map(|(index, slice)| {
                let gap = index - std::mem::replace(&mut before, index);
                Placement::of(gap, slice)
            });
            let some: Vec<Placement> = some.collect();
            room -= some.len().max(1);
            if !some.is_empty() {
                put(piece, &Section::Slices(*id, some));
            }
            index = 0;
            if record.slices.range(before..).nth(1).is_some() {
                return Next::Slices(*id, before + 1);
            }
        }
        Next::Fronts(VolumeId(0))
    }
}

fn put(piece: &mut Vec<u8>, section: &Section) {
    let bytes = std::mem::take(piece);
    *piece = postcard::to_extend(section, bytes).expect("plain data always encodes");
}

fn from<V: Clone>(
    map: &SharedMap<VolumeId, V>,
    first: VolumeId,
) -> impl Iterator<Item = (VolumeId, V)> + '_ {
    map.range(first..).map(|(id, value)| (*id, value.clone()))
}

/// As many records as a piece has, and the number of the first one that is left.
fn page<V>(
    mut records: impl Iterator<Item = (VolumeId, V)>,
) -> (Vec<(VolumeId, V)>, Option<VolumeId>) {
    let page = records.by_ref().take(PIECE_RECORDS_MAX).collect();
    (page, records.next().map(|(id, _)| id))
}

impl ClusterState {
    /// This moment of the state, to be written down piece by piece.
    pub fn pieces(&self) -> Pieces {
        Pieces {
            state: self.clone(),
            next: Next::Small,
        }
    }

    /// Takes one section up from the head of `bytes`, into a state that began as the default one,
    /// and gives what follows it. `None` if it is damaged or of a newer version; the state is then
    /// of no use.
    pub fn take_up<'a>(&mut self, bytes: &'a [u8]) -> Option<(Progress, &'a [u8])> {
        let (section, rest): (Section, _) = postcard::take_from_bytes(bytes).ok()?;
        match section {
            Section::Cluster(cluster) => {
                self.cluster = cluster.identity.map(Rc::new);
                (self.view, self.last_volume) = (cluster.view, cluster.last_volume);
                self.rebalancing_off = cluster.rebalancing_off;
            }
            Section::Nodes(nodes) => Rc::make_mut(&mut self.nodes).extend(nodes),
            Section::DiskFailures(failures) => self.disk_failures.extend(failures),
            Section::Tokens(tokens) => self.tokens.extend(tokens),
            Section::Draining(draining) => self.draining.extend(draining),
            Section::Volumes(heads) => {
                for (id, head) in heads {
                    self.take_up_volume(id, head, Slices::default())?;
                }
            }
            Section::Slices(volume, placements) => self.take_up_slices(volume, &placements)?,
            Section::Fronts(fronts) => {
                for (volume, front) in fronts {
                    self.fronts.set(volume, front);
                }
            }
            Section::Growing(growing) => self.growing.extend(growing),
            Section::LastOpen(offices) => self.last_open.extend(offices),
            Section::Placed(placed) => self.placed.extend(placed),
            Section::End => return Some((Progress::Complete, rest)),
        }
        Some((Progress::More, rest))
    }

    fn take_up_volume(&mut self, id: VolumeId, head: Head, slices: Slices) -> Option<()> {
        if self.volumes.contains_key(&id) || !head.is_sound() {
            return None;
        }
        self.volumes.insert(id, head.record(slices));
        Some(())
    }

    fn take_up_slices(&mut self, volume: VolumeId, placements: &[Placement]) -> Option<()> {
        let mut slices = Vec::with_capacity(placements.len());
        let mut index = 0_u32;
        for placement in placements {
            index = index.checked_add(placement.0)?;
            slices.push((index, placement.slice()?));
        }
        let indexes: Vec<u32> = slices.iter().map(|(index, _)| *index).collect();
        self.volumes.update(volume, |record| {
            for (index, slice) in slices {
                record.slices.set(index, slice);
            }
        })?;
        self.note_waiting(volume, &indexes);
        Some(())
    }
}
