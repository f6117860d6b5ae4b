//! Applying one change: validation first, then the change, then ownership settles.

use std::rc::Rc;

use holdfast_reservation::Request;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::{View, VolumeId};

use super::change::{Admission, Change, NodeStart, Outcome, Refusal, VolumeSpec};
use super::records::{ClusterIdentity, ClusterState, NodeRecord, NodeStatus, VolumeRecord};
use super::slices::CopyStatus;
use super::{
    COPIES_MAX, SLICE_BYTES_MIN, VOLUME_BYTES_MAX, VOLUME_NAME_BYTES_MAX, WHOLE_VOLUME_BYTES_MAX,
};

/// The authority part of every target name; the volume's name follows.
const TARGET_NAME_PREFIX: &str = "iqn.2026-11.io.holdfast:";
/// Smallest volume.
const BYTES_MIN: u64 = 1 << 20;

/// Which slices of a new volume are placed with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlicesAtFirst {
    /// All of them: as it was before slices came with their first write.
    All,
    /// The first one.
    Anchor,
}

impl ClusterState {
    /// Applies `change`. A refusal leaves the state as it was; only `RemoveCopies` may have
    /// removed other copies than the last one that it names.
    pub fn apply(&mut self, change: Change) -> Outcome {
        let result = match change {
            Change::Found {
                cluster,
                uuid,
                link_address,
            } => self.found(cluster, uuid, link_address),
            Change::AddToken {
                secret_hash,
                expires_unix_ms,
            } => {
                self.tokens
                    .insert(secret_hash, super::TokenRecord { expires_unix_ms });
                Ok(Outcome::Done)
            }
            Change::Admit(admission) => self.admit(&admission),
            Change::NodeStarted(start) => self.node_started(start),
            Change::NodeDown { node, incarnation } => self.node_down(node, incarnation),
            Change::HandOver { node, incarnation } => self.hand_over(node, incarnation),
            Change::Evict { node } => self.evict(node),
            Change::DiskFailed {
                node,
                incarnation,
                now_unix_ms,
            } => self.disk_failed(node, incarnation, now_unix_ms),
            Change::CreateVolume(spec) => self.create_volume(spec),
            Change::DeleteVolume { volume } => match self.volumes.remove(volume) {
                Some(_) => {
                    self.mending.forget(volume);
                    self.growing.remove(&volume);
                    self.fronts.remove(volume);
                    self.last_open.remove(&volume);
                    self.placed.remove(&volume);
                    Ok(Outcome::Done)
                }
                None => Err(Refusal::VolumeUnknown(volume)),
            },
            Change::Opened {
                volume,
                view,
                reconciled,
            } => self.opened(volume, view, &reconciled),
            Change::Resign { volume, view } => self.resign(volume, view),
            Change::RemoveCopies {
                volume,
                view,
                slices,
                node,
            } => self.remove_copies(volume, view, &slices, node),
            Change::PromoteCopy {
                volume,
                view,
                slice,
                node,
                incarnation,
            } => self.promote_copy(volume, view, slice, node, incarnation),
            Change::ChangeReservations { volume, request } => {
                self.change_reservations(volume, &request)
            }
            Change::GrowVolume {
                volume,
                expected_bytes,
                size_bytes,
            } => self.grow_volume(volume, expected_bytes, size_bytes),
            Change::Grown {
                volume,
                view,
                reconciled,
            } => self.grown(volume, view, &reconciled),
            Change::CreateVolumeWith { spec, front } => self.create_volume_with(spec, &front),
            Change::ChangeFront { volume, change } => self.change_front(volume, &change),
            Change::RotateSecret {
                volume,
                chap,
                now_unix_ms,
                old_until_unix_ms,
                revoke,
            } => self.rotate_secret(volume, chap, now_unix_ms, old_until_unix_ms, revoke),
            Change::MoveVolume { volume, view, to } => self.move_volume(volume, view, to),
            Change::PlaceVolume { volume, view, to } => self.place_volume(volume, view, to),
            Change::SetRebalancing { automatic } => {
                self.rebalancing_off = !automatic;
                Ok(Outcome::Done)
            }
            Change::EndGrace { now_unix_ms } => self.end_grace(now_unix_ms),
            Change::CreateThinVolume { spec, front } => self.create_thin_volume(spec, &front),
            Change::ResizeVolume {
                volume,
                expected_bytes,
                size_bytes,
            } => self.resize_volume(volume, expected_bytes, size_bytes),
            Change::PlaceSlices {
                volume,
                view,
                slices,
                incarnations,
            } => self.place_slices(volume, view, &slices, &incarnations),
            Change::PromoteCopies {
                volume,
                view,
                node,
                incarnation,
                slices,
            } => self.promote_copies(volume, view, node, incarnation, &slices),
            Change::Drain { node, now_unix_ms } => self.drain(node, now_unix_ms),
            Change::CancelDrain { node } => self.cancel_drain(node),
            Change::RemoveNode { node } => self.remove_node(node),
            Change::Mend { slices } => self.mend_slices(&slices),
            Change::OpenedBut {
                volume,
                view,
                slices,
                incarnations,
                left_out,
            } => self.opened_but(volume, view, slices, &incarnations, &left_out),
            Change::MoveCopies { moves } => self.move_copies(&moves),
        };
        self.mend();
        result.unwrap_or_else(Outcome::Refused)
    }

    fn found(
        &mut self,
        cluster: ClusterIdentity,
        uuid: [u8; 16],
        link_address: String,
    ) -> Result<Outcome, Refusal> {
        if self.cluster.is_some() {
            return Err(Refusal::AlreadyFounded);
        }
        self.cluster = Some(Rc::new(cluster));
        let node = self.add_node(uuid, link_address);
        Ok(Outcome::Admitted(node))
    }

    fn add_node(&mut self, uuid: [u8; 16], link_address: String) -> NodeId {
        // Nodes are never forgotten, so the largest number is also the newest.
        let node = NodeId(self.nodes.keys().next_back().map_or(1, |last| last.0 + 1));
        let record = NodeRecord {
            uuid,
            incarnation: Incarnation::default(),
            status: NodeStatus::Admitted,
            link_address,
            api_address: String::new(),
            portal_address: String::new(),
            version: String::new(),
        };
        Rc::make_mut(&mut self.nodes).insert(node, record);
        node
    }

    fn admit(&mut self, admission: &Admission) -> Result<Outcome, Refusal> {
        // The answer to an earlier try may have been lost: the same directory asks again.
        let known = self
            .nodes
            .iter()
            .find(|(_, record)| record.uuid == admission.uuid);
        if let Some((node, record)) = known {
            return if record.status == NodeStatus::Admitted {
                Ok(Outcome::Admitted(*node))
            } else {
                Err(Refusal::IdentityReused(*node))
            };
        }
        let token = self
            .tokens
            .get(&admission.secret_hash)
            .ok_or(Refusal::TokenUnknown)?;
        if token.expires_unix_ms <= admission.now_unix_ms {
            return Err(Refusal::TokenExpired);
        }
        self.tokens.remove(&admission.secret_hash);
        self.forget_tokens(admission.now_unix_ms);
        let node = self.add_node(admission.uuid, admission.link_address.clone());
        Ok(Outcome::Admitted(node))
    }

    fn node_started(&mut self, start: NodeStart) -> Result<Outcome, Refusal> {
        let node = start.node;
        let record = Rc::make_mut(&mut self.nodes)
            .get_mut(&node)
            .ok_or(Refusal::NodeUnknown(node))?;
        if record.uuid != start.uuid {
            return Err(Refusal::IdentityReused(node));
        }
        if record.status == NodeStatus::Evicted {
            return Err(Refusal::Evicted(node));
        }
        if start.incarnation < record.incarnation {
            return Err(Refusal::IncarnationStale(node));
        }
        let restarted = start.incarnation > record.incarnation;
        let was_running = matches!(record.status, NodeStatus::Up | NodeStatus::Leaving);
        record.incarnation = start.incarnation;
        record.status = NodeStatus::Up;
        record.link_address = start.link_address;
        record.api_address = start.api_address;
        record.portal_address = start.portal_address;
        record.version = start.version;
        if restarted && planted::is_active(Bug::RestartEndsDrain) {
            self.draining.remove(&node);
        }
        if restarted {
            self.settle_restart(node);
        } else if !was_running {
            self.settle_return(node);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn node_down(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Result<Outcome, Refusal> {
        let record = Rc::make_mut(&mut self.nodes)
            .get_mut(&node)
            .ok_or(Refusal::NodeUnknown(node))?;
        let running = matches!(record.status, NodeStatus::Up | NodeStatus::Leaving);
        if record.incarnation == incarnation && running {
            record.status = NodeStatus::Down;
            self.settle_down(node);
        }
        Ok(Outcome::Done)
    }

    fn hand_over(&mut self, node: NodeId, incarnation: Incarnation) -> Result<Outcome, Refusal> {
        let record = Rc::make_mut(&mut self.nodes)
            .get_mut(&node)
            .ok_or(Refusal::NodeUnknown(node))?;
        if record.incarnation != incarnation {
            return Err(Refusal::IncarnationStale(node));
        }
        if record.status == NodeStatus::Up {
            record.status = NodeStatus::Leaving;
            self.settle_leaving(node);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn create_volume(&mut self, spec: VolumeSpec) -> Result<Outcome, Refusal> {
        let volume = self.create_with_slices(spec, SlicesAtFirst::All)?;
        Ok(Outcome::Created(volume))
    }

    pub(super) fn create_with_slices(
        &mut self,
        spec: VolumeSpec,
        at_first: SlicesAtFirst,
    ) -> Result<VolumeId, Refusal> {
        let bytes_max = match at_first {
            SlicesAtFirst::All => WHOLE_VOLUME_BYTES_MAX,
            SlicesAtFirst::Anchor => VOLUME_BYTES_MAX,
        };
        validate(&spec, bytes_max)?;
        if self.volumes.by_name(&spec.name).is_some() {
            return Err(Refusal::NameTaken(spec.name));
        }
        let up = self.nodes_for(spec.copies)?;
        let volume = VolumeId(self.last_volume + 1);
        let slice_count = match at_first {
            SlicesAtFirst::All => spec.size_bytes.div_ceil(spec.slice_bytes) as u32,
            SlicesAtFirst::Anchor => 1,
        };
        let slices = self.in_sync_on(&up, volume, 0..slice_count, spec.copies);
        match at_first {
            SlicesAtFirst::All => self.check_capacity(&slices)?,
            SlicesAtFirst::Anchor => {}
        }
        self.last_volume = volume.0;
        let record = VolumeRecord {
            target_name: format!("{TARGET_NAME_PREFIX}{}", spec.name),
            naa: naa(volume, spec.naa_random),
            name: spec.name,
            size_bytes: spec.size_bytes,
            logical_block_bytes: spec.logical_block_bytes,
            slice_bytes: spec.slice_bytes,
            copies: spec.copies,
            chap: spec.chap,
            created_unix_ms: spec.now_unix_ms,
            owner: None,
            view: View::default(),
            open: false,
            ever_open: false,
            slices: (0..).zip(slices).collect(),
            reservations: Rc::default(),
        };
        self.volumes.insert(volume, record);
        self.appoint(volume);
        Ok(volume)
    }

    fn resign(&mut self, volume: VolumeId, view: View) -> Result<Outcome, Refusal> {
        let record = self
            .volumes
            .get(&volume)
            .ok_or(Refusal::VolumeUnknown(volume))?;
        if record.view != view {
            return Err(Refusal::ViewStale);
        }
        self.appoint(volume);
        Ok(Outcome::Done)
    }

    /// The record of a volume whose owner is in office with this view.
    pub(super) fn open_record(
        &self,
        volume: VolumeId,
        view: View,
    ) -> Result<&VolumeRecord, Refusal> {
        let record = self.volumes.get(&volume);
        let record = record.ok_or(Refusal::VolumeUnknown(volume))?;
        if record.view != view || !record.open {
            return Err(Refusal::ViewStale);
        }
        Ok(record)
    }

    fn remove_copies(
        &mut self,
        volume: VolumeId,
        view: View,
        slices: &[u32],
        node: NodeId,
    ) -> Result<Outcome, Refusal> {
        let mut result = Ok(Outcome::Done);
        let mut removed = Vec::new();
        // What an evicted node has counts for nothing, even while it is in sync by name.
        let counts = |other: NodeId| other != node && !self.is_evicted(other);
        for index in slices.iter().copied() {
            let record = self.open_record(volume, view)?;
            let Some(slice) = record.slices.get(index) else {
                // What was named before it is removed all the same.
                result = Err(Refusal::ViewStale);
                break;
            };
            if !slice.is_in_sync(node) {
                continue;
            }
            if !slice.in_sync().any(counts) {
                result = Err(Refusal::LastCopy);
                continue;
            }
            removed.extend(
                slice
                    .with_status(node, CopyStatus::Stale)
                    .map(|slice| (index, slice)),
            );
        }
        if !removed.is_empty() {
            self.set_slices(volume, removed);
            self.view.0 += 1;
        }
        result
    }

    fn promote_copy(
        &mut self,
        volume: VolumeId,
        view: View,
        slice: u32,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Result<Outcome, Refusal> {
        self.promote(volume, view, node, incarnation, &[slice])
    }

    pub(super) fn promote(
        &mut self,
        volume: VolumeId,
        view: View,
        node: NodeId,
        incarnation: Incarnation,
        slices: &[u32],
    ) -> Result<Outcome, Refusal> {
        if !self.running(node, incarnation) {
            return Err(Refusal::IncarnationStale(node));
        }
        let record = self.open_record(volume, view)?;
        let promoted = |index: &u32| {
            let slice = record.slices.get(*index);
            let slice = slice.and_then(|slice| slice.with_status(node, CopyStatus::InSync));
            Ok((*index, slice.ok_or(Refusal::ViewStale)?))
        };
        let promoted: Vec<_> = slices
            .iter()
            .map(promoted)
            .collect::<Result<_, Refusal>>()?;
        self.set_slices(volume, promoted);
        self.view.0 += 1;
        Ok(Outcome::Done)
    }

    fn change_reservations(
        &mut self,
        volume: VolumeId,
        request: &Request,
    ) -> Result<Outcome, Refusal> {
        let record = self.volumes.get(&volume);
        let mut table = record
            .ok_or(Refusal::VolumeUnknown(volume))?
            .reservations
            .clone();
        let effects = Rc::make_mut(&mut table).apply(request)?;
        self.volumes
            .update(volume, |record| record.reservations = table);
        Ok(Outcome::Reserved(effects))
    }
}

fn validate(spec: &VolumeSpec, bytes_max: u64) -> Result<(), Refusal> {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let name = &spec.name;
    if name.is_empty()
        || name.len() > VOLUME_NAME_BYTES_MAX
        || !name
            .chars()
            .all(|c| alphanumeric(c) || c == '-' || c == '.')
        || !name.starts_with(alphanumeric)
        || !name.ends_with(alphanumeric)
    {
        return Err(Refusal::NameInvalid(name.clone()));
    }
    validate_size(spec.size_bytes, bytes_max)?;
    if spec.copies == 0 || spec.copies > COPIES_MAX {
        return Err(Refusal::CopiesInvalid(spec.copies));
    }
    if spec.logical_block_bytes != 512 && spec.logical_block_bytes != 4096 {
        return Err(Refusal::BlockSizeInvalid(spec.logical_block_bytes));
    }
    if !spec.slice_bytes.is_power_of_two()
        || !(SLICE_BYTES_MIN..=64 << 30).contains(&spec.slice_bytes)
    {
        return Err(Refusal::SliceSizeInvalid(spec.slice_bytes));
    }
    Ok(())
}

pub(super) fn validate_size(size: u64, bytes_max: u64) -> Result<(), Refusal> {
    if (BYTES_MIN..=bytes_max).contains(&size) && size.is_multiple_of(4096) {
        Ok(())
    } else {
        Err(Refusal::SizeInvalid(size))
    }
}

/// A locally assigned NAA identifier of 16 bytes in the form of NAA 6 (SPC-5 7.7.6.6.5): the
/// volume's number keeps it unique in the cluster, the random part between clusters.
fn naa(volume: VolumeId, random: u64) -> [u8; 16] {
    let mut naa = [0; 16];
    naa[..8].copy_from_slice(&random.to_be_bytes());
    naa[8..].copy_from_slice(&volume.0.to_be_bytes());
    naa[0] = 0x60 | (naa[0] & 0x0f);
    naa
}
