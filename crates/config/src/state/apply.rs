//! Applying one change: validation first, then the change, then ownership settles.

use std::rc::Rc;

use holdfast_reservation::Request;
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::{View, VolumeId};

use super::change::{Admission, Change, NodeStart, Outcome, Reconciled, Refusal, VolumeSpec};
use super::growth::{placed, settle_copies};
use super::records::{
    ClusterIdentity, ClusterState, CopyStatus, NodeRecord, NodeStatus, SliceRecord, VolumeRecord,
};
use super::{COPIES_MAX, VOLUME_BYTES_MAX, VOLUME_NAME_BYTES_MAX};

/// The authority part of every target name; the volume's name follows.
const TARGET_NAME_PREFIX: &str = "iqn.2026-11.io.holdfast:";
const MIB: u64 = 1 << 20;

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
            Change::DeleteVolume { volume } => match self.volumes.remove(&volume) {
                Some(_) => {
                    self.growing.remove(&volume);
                    self.fronts.remove(&volume);
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
        };
        self.rehome();
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
        self.cluster = Some(cluster);
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
        self.nodes.insert(node, record);
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
        self.tokens
            .retain(|_, token| token.expires_unix_ms > admission.now_unix_ms);
        let node = self.add_node(admission.uuid, admission.link_address.clone());
        Ok(Outcome::Admitted(node))
    }

    fn node_started(&mut self, start: NodeStart) -> Result<Outcome, Refusal> {
        let node = start.node;
        let record = self
            .nodes
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
        let record = self
            .nodes
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
        let record = self
            .nodes
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
        validate(&spec)?;
        if self.volume_by_name(&spec.name).is_some() {
            return Err(Refusal::NameTaken(spec.name));
        }
        let up = self.nodes_for(spec.copies)?;
        let volume = VolumeId(self.last_volume + 1);
        let slice_count = spec.size_bytes.div_ceil(spec.slice_bytes) as u32;
        let slices = placed(&up, volume, 0..slice_count, spec.copies);
        self.check_capacity(&slices)?;
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
            slices,
            reservations: Rc::default(),
        };
        self.volumes.insert(volume, record);
        self.appoint(volume);
        Ok(Outcome::Created(volume))
    }

    fn opened(
        &mut self,
        volume: VolumeId,
        view: View,
        reconciled: &Reconciled,
    ) -> Result<Outcome, Refusal> {
        let growing = self.growing.get(&volume).copied();
        let record = self
            .volumes
            .get_mut(&volume)
            .ok_or(Refusal::VolumeUnknown(volume))?;
        // Slices that were added while the takeover went on are left for the open owner.
        let reconciled_all = reconciled.slices.len() == record.slices.len();
        let all_but_new =
            growing.is_some_and(|growth| reconciled.slices.len() == growth.first_slice as usize);
        if record.view != view || record.open || !(reconciled_all || all_but_new) {
            return Err(Refusal::ViewStale);
        }
        let count = reconciled.slices.len();
        settle_copies(&self.nodes, &mut record.slices[..count], reconciled)?;
        record.open = true;
        record.ever_open = true;
        self.last_open.remove(&volume);
        if let Some(growth) = growing
            && reconciled_all
        {
            record.size_bytes = growth.size_bytes;
            self.growing.remove(&volume);
        }
        self.view.0 += 1;
        Ok(Outcome::Done)
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

    fn open_slice(
        &mut self,
        volume: VolumeId,
        view: View,
        slice: u32,
    ) -> Result<&mut SliceRecord, Refusal> {
        let record = self
            .volumes
            .get_mut(&volume)
            .ok_or(Refusal::VolumeUnknown(volume))?;
        if record.view != view || !record.open {
            return Err(Refusal::ViewStale);
        }
        record
            .slices
            .get_mut(slice as usize)
            .ok_or(Refusal::ViewStale)
    }

    fn remove_copies(
        &mut self,
        volume: VolumeId,
        view: View,
        slices: &[u32],
        node: NodeId,
    ) -> Result<Outcome, Refusal> {
        let mut last = false;
        let mut removed = false;
        for slice in slices {
            let record = self.open_slice(volume, view, *slice)?;
            if !record.is_in_sync(node) {
                continue;
            }
            if record.in_sync().count() == 1 {
                last = true;
                continue;
            }
            removed |= record.set_status(node, CopyStatus::Stale);
        }
        if removed {
            self.view.0 += 1;
        }
        if last {
            Err(Refusal::LastCopy)
        } else {
            Ok(Outcome::Done)
        }
    }

    fn promote_copy(
        &mut self,
        volume: VolumeId,
        view: View,
        slice: u32,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Result<Outcome, Refusal> {
        if !self.running(node, incarnation) {
            return Err(Refusal::IncarnationStale(node));
        }
        let record = self.open_slice(volume, view, slice)?;
        if !record.set_status(node, CopyStatus::InSync) {
            return Err(Refusal::ViewStale);
        }
        self.view.0 += 1;
        Ok(Outcome::Done)
    }

    fn change_reservations(
        &mut self,
        volume: VolumeId,
        request: &Request,
    ) -> Result<Outcome, Refusal> {
        let record = self
            .volumes
            .get_mut(&volume)
            .ok_or(Refusal::VolumeUnknown(volume))?;
        let effects = Rc::make_mut(&mut record.reservations).apply(request)?;
        Ok(Outcome::Reserved(effects))
    }
}

fn validate(spec: &VolumeSpec) -> Result<(), Refusal> {
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
    validate_size(spec.size_bytes)?;
    if spec.copies == 0 || spec.copies > COPIES_MAX {
        return Err(Refusal::CopiesInvalid(spec.copies));
    }
    if spec.logical_block_bytes != 512 && spec.logical_block_bytes != 4096 {
        return Err(Refusal::BlockSizeInvalid(spec.logical_block_bytes));
    }
    if !spec.slice_bytes.is_power_of_two() || !(MIB..=64 << 30).contains(&spec.slice_bytes) {
        return Err(Refusal::SliceSizeInvalid(spec.slice_bytes));
    }
    Ok(())
}

pub(super) fn validate_size(size: u64) -> Result<(), Refusal> {
    if (MIB..=VOLUME_BYTES_MAX).contains(&size) && size.is_multiple_of(4096) {
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
