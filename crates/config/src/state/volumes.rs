//! All volumes, and what has to be found without looking at each of them.
//!
//! Records are shared: a clone of the whole costs nothing, and a change of one record copies that
//! record and the few tree nodes above it. Records change through [`Volumes::insert`],
//! [`Volumes::update`] and [`Volumes::remove`] only, which keep the indexes: so an index is
//! always what building it anew from the records gives, and nothing compares or stores it.

use std::fmt;
use std::ops::{Bound, Index};
use std::rc::Rc;

use holdfast_runtime::{NodeId, work};
use holdfast_wire::VolumeId;
use imbl::ordmap::DiffItem;
use imbl::shared_ptr::RcK;

use super::records::VolumeRecord;
use super::slices::{SharedMap, SharedSet};

/// See the module's header.
#[derive(Clone, Default)]
pub struct Volumes {
    records: SharedMap<VolumeId, Rc<VolumeRecord>>,
    by_name: SharedMap<Rc<str>, VolumeId>,
    by_target: SharedMap<Rc<str>, VolumeId>,
    /// By owner; volumes without one are under `None`.
    by_owner: SharedSet<(Option<NodeId>, VolumeId)>,
    /// How many volumes each node owns.
    offices: SharedMap<NodeId, usize>,
    /// By each node that has copies of the volume.
    by_holder: SharedSet<(NodeId, VolumeId)>,
    /// By the target port of the session that holds an SPC-2 reservation (RESERVE).
    by_unit_port: SharedSet<(u16, VolumeId)>,
    /// Of all records, see [`weight_bytes`].
    weight_bytes: u64,
}

/// What of a record is in indexes and may change.
struct Facets {
    owner: Option<NodeId>,
    unit_port: Option<u16>,
    holders: Vec<NodeId>,
    weight_bytes: u64,
}

impl Facets {
    fn of(record: &VolumeRecord) -> Self {
        let holder = record.reservations.unit_holder();
        let holders = record.slices.holders();
        Self {
            owner: record.owner.map(|owner| owner.node),
            unit_port: holder.map(|holder| holder.target_port),
            holders: holders.iter().map(|held| held.node).collect(),
            weight_bytes: weight_bytes(record),
        }
    }
}

/// What a record has in a snapshot, about: never less, but for names of nodes and initiators that
/// are unusually long.
fn weight_bytes(record: &VolumeRecord) -> u64 {
    let slices = record.slices.holders().iter();
    let copies: u64 = slices.map(|held| u64::from(held.copies)).sum();
    let names = record.name.len() + record.target_name.len();
    RECORD_BYTES
        + names as u64
        + record.slices.len() as u64 * SLICE_BYTES
        + copies * COPY_BYTES
        + record.reservations.entries() as u64 * RESERVATION_BYTES
}

/// A record without names and slices.
const RECORD_BYTES: u64 = 160;
/// A slice without its copies: its index and their number.
const SLICE_BYTES: u64 = 3;
/// A copy on one of the first 8,192 nodes.
const COPY_BYTES: u64 = 2;
/// A registration, or what the table remembers of one that ended.
const RESERVATION_BYTES: u64 = 80;

impl Volumes {
    /// The record of a volume.
    pub fn get(&self, volume: &VolumeId) -> Option<&VolumeRecord> {
        self.records.get(volume).map(Rc::as_ref)
    }

    /// The record of a volume, to keep; as long as it is the same pointer, nothing has changed.
    pub fn shared(&self, volume: &VolumeId) -> Option<&Rc<VolumeRecord>> {
        self.records.get(volume)
    }

    /// Whether there is such a volume.
    pub fn contains_key(&self, volume: &VolumeId) -> bool {
        self.records.contains_key(volume)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// All of them, ascending by number.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&VolumeId, &VolumeRecord)> + Clone {
        let volumes = self.records.iter().inspect(|_| work::note(1));
        volumes.map(|(id, record)| (id, &**record))
    }

    /// All numbers, ascending.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &VolumeId> + Clone {
        self.iter().map(|(id, _)| id)
    }

    /// All records, ascending by number.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &VolumeRecord> + Clone {
        self.iter().map(|(_, record)| record)
    }

    /// Those from one number on, ascending: a page of the whole.
    pub fn from(
        &self,
        first: VolumeId,
    ) -> impl DoubleEndedIterator<Item = (&VolumeId, &Rc<VolumeRecord>)> + Clone {
        self.records.range(first..)
    }

    /// The volume with this name.
    pub fn by_name(&self, name: &str) -> Option<VolumeId> {
        self.by_name.get(name).copied()
    }

    /// The volume behind this target name.
    pub fn by_target(&self, target_name: &str) -> Option<VolumeId> {
        self.by_target.get(target_name).copied()
    }

    /// The volumes that a node owns, ascending; with `None` those without an owner.
    pub fn owned_by(&self, owner: Option<NodeId>) -> impl Iterator<Item = VolumeId> + '_ {
        with_key(&self.by_owner, owner)
    }

    /// How many volumes a node owns.
    pub fn offices(&self, node: NodeId) -> usize {
        self.offices.get(&node).copied().unwrap_or(0)
    }

    /// The volumes of which a node has copies, ascending.
    pub fn held_by(&self, node: NodeId) -> impl Iterator<Item = VolumeId> + '_ {
        with_key(&self.by_holder, node)
    }

    /// The volumes with an SPC-2 reservation by a session of this target port.
    pub(super) fn reserved_by(&self, port: u16) -> impl Iterator<Item = VolumeId> + '_ {
        with_key(&self.by_unit_port, port)
    }

    /// What all records have in a snapshot, about.
    pub(super) fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Whether both are one and the same: then no record has changed.
    pub fn is_same(&self, other: &Self) -> bool {
        self.records.ptr_eq(&other.records)
    }

    /// The volumes that were added, removed or changed since `before`, ascending. What both share
    /// is not looked at.
    pub fn changed_since(&self, before: &Self) -> Vec<VolumeId> {
        let changes = before.records.diff(&self.records);
        let changed = changes.map(|change| match change {
            DiffItem::Add(volume, _) | DiffItem::Remove(volume, _) => *volume,
            DiffItem::Update { new, .. } => *new.0,
        });
        changed.collect()
    }

    /// Adds a volume whose number is not in use.
    pub(super) fn insert(&mut self, id: VolumeId, record: VolumeRecord) {
        self.by_name.insert(record.name.as_str().into(), id);
        self.by_target
            .insert(record.target_name.as_str().into(), id);
        let facets = Facets::of(&record);
        self.add(id, &facets);
        let before = self.records.insert(id, Rc::new(record));
        assert!(before.is_none(), "volume {id} is there already");
    }

    /// Changes what may change of a record: all but its names.
    pub fn update<R>(
        &mut self,
        id: VolumeId,
        change: impl FnOnce(&mut VolumeRecord) -> R,
    ) -> Option<R> {
        let record = Rc::make_mut(self.records.get_mut(&id)?);
        let before = Facets::of(record);
        let changed = change(record);
        let after = Facets::of(record);
        self.weight_bytes = self.weight_bytes - before.weight_bytes + after.weight_bytes;
        if before.owner != after.owner {
            self.take_owner(id, before.owner);
            self.add_owner(id, after.owner);
        }
        if before.unit_port != after.unit_port {
            self.take_unit_port(id, before.unit_port);
            self.add_unit_port(id, after.unit_port);
        }
        if before.holders != after.holders {
            self.take_holders(id, &before.holders);
            self.add_holders(id, &after.holders);
        }
        Some(changed)
    }

    /// Forgets a volume.
    pub(super) fn remove(&mut self, id: VolumeId) -> Option<Rc<VolumeRecord>> {
        let record = self.records.remove(&id)?;
        self.by_name.remove(record.name.as_str());
        self.by_target.remove(record.target_name.as_str());
        let facets = Facets::of(&record);
        self.take_owner(id, facets.owner);
        self.take_unit_port(id, facets.unit_port);
        self.take_holders(id, &facets.holders);
        self.weight_bytes -= facets.weight_bytes;
        Some(record)
    }

    fn add(&mut self, id: VolumeId, facets: &Facets) {
        self.add_owner(id, facets.owner);
        self.add_unit_port(id, facets.unit_port);
        self.add_holders(id, &facets.holders);
        self.weight_bytes += facets.weight_bytes;
    }

    fn add_owner(&mut self, id: VolumeId, owner: Option<NodeId>) {
        self.by_owner.insert((owner, id));
        if let Some(node) = owner {
            *self.offices.entry(node).or_default() += 1;
        }
    }

    fn take_owner(&mut self, id: VolumeId, owner: Option<NodeId>) {
        self.by_owner.remove(&(owner, id));
        if let Some(count) = owner.and_then(|node| self.offices.get_mut(&node)) {
            *count -= 1;
        }
    }

    fn add_unit_port(&mut self, id: VolumeId, port: Option<u16>) {
        if let Some(port) = port {
            self.by_unit_port.insert((port, id));
        }
    }

    fn take_unit_port(&mut self, id: VolumeId, port: Option<u16>) {
        if let Some(port) = port {
            self.by_unit_port.remove(&(port, id));
        }
    }

    fn add_holders(&mut self, id: VolumeId, holders: &[NodeId]) {
        for node in holders {
            self.by_holder.insert((*node, id));
        }
    }

    fn take_holders(&mut self, id: VolumeId, holders: &[NodeId]) {
        for node in holders {
            self.by_holder.remove(&(*node, id));
        }
    }

    /// Asserts that the indexes are those of the records.
    pub(super) fn check(&self) {
        let mut fresh = Self::default();
        for (id, record) in &self.records {
            assert_eq!(self.by_name(&record.name), Some(*id), "index of names");
            assert_eq!(
                self.by_target(&record.target_name),
                Some(*id),
                "index of targets"
            );
            fresh.add(*id, &Facets::of(record));
        }
        assert_eq!(self.by_name.len(), self.records.len(), "index of names");
        assert_eq!(self.by_target.len(), self.records.len(), "index of targets");
        assert_eq!(self.weight_bytes, fresh.weight_bytes, "weight");
        assert!(self.by_owner == fresh.by_owner, "index of owners");
        assert!(self.by_holder == fresh.by_holder, "index of holders");
        assert!(
            self.by_unit_port == fresh.by_unit_port,
            "index of reservations"
        );
        for (node, count) in &self.offices {
            assert_eq!(*count, fresh.offices(*node), "offices of node {node}");
        }
    }
}

fn with_key<K: Copy + Ord>(
    set: &SharedSet<(K, VolumeId)>,
    key: K,
) -> impl Iterator<Item = VolumeId> + '_ {
    let first = Bound::Included((key, VolumeId(0)));
    let last = Bound::Included((key, VolumeId(u64::MAX)));
    set.range((first, last)).map(|(_, id)| *id)
}

impl Index<&VolumeId> for Volumes {
    type Output = VolumeRecord;

    fn index(&self, volume: &VolumeId) -> &VolumeRecord {
        self.get(volume).expect("a volume that exists")
    }
}

type Record<'a> = (&'a VolumeId, &'a VolumeRecord);

impl<'a> IntoIterator for &'a Volumes {
    type Item = Record<'a>;
    type IntoIter = std::iter::Map<
        imbl::ordmap::Iter<'a, VolumeId, Rc<VolumeRecord>, RcK>,
        fn((&'a VolumeId, &'a Rc<VolumeRecord>)) -> Record<'a>,
    >;

    fn into_iter(self) -> Self::IntoIter {
        self.records.iter().map(|(id, record)| (id, &**record))
    }
}

impl PartialEq for Volumes {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || self.records == other.records
    }
}

impl Eq for Volumes {}

impl fmt::Debug for Volumes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.iter()).finish()
    }
}
