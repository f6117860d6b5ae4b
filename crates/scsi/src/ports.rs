//! Target ports and their asymmetric access states (SPC-4 5.11).

use std::rc::Rc;

use crate::sense::Sense;

/// Asymmetric access state of a target port group (SPC-4 table 284).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AccessState {
    /// The node of this group owns the volume.
    Optimized = 0x0,
    /// Commands work and are forwarded to the owner.
    NonOptimized = 0x1,
    /// Only inquiries and reservations work.
    Standby = 0x2,
    /// Only inquiries work.
    Unavailable = 0x3,
    /// The node of the group is down.
    Offline = 0xe,
    /// Ownership is moving.
    Transitioning = 0xf,
}

impl AccessState {
    /// What a command to the medium is refused with in this state.
    pub const fn refusal(self) -> Option<Sense> {
        match self {
            Self::Optimized | Self::NonOptimized => None,
            Self::Standby => Some(Sense::PORT_STANDBY),
            Self::Unavailable | Self::Offline => Some(Sense::PORT_UNAVAILABLE),
            Self::Transitioning => Some(Sense::ACCESS_TRANSITION),
        }
    }
}

/// One target port group: the portals of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortGroup {
    /// Target port group identifier; for iSCSI the portal group tag.
    pub id: u16,
    /// Present state.
    pub state: AccessState,
    /// Whether hosts should prefer the group.
    pub preferred: bool,
    /// Relative identifiers of the group's target ports.
    pub ports: Vec<u16>,
}

/// The groups through which a volume can be reached; the node implements it.
pub trait PortGroups {
    /// Every group of the volume.
    fn groups(&self) -> Vec<PortGroup>;
    /// State of one group; called for every command to the medium.
    fn state(&self, group: u16) -> AccessState;
}

/// The target port through which a nexus reaches the unit.
#[derive(Clone)]
pub struct TargetPort {
    /// iSCSI name of the target.
    pub target: Rc<str>,
    /// Portal group tag, which is also the target port group identifier.
    pub group: u16,
    /// Relative target port identifier, unique among the ports of the volume.
    pub relative_id: u16,
    /// Every group of the volume.
    pub groups: Rc<dyn PortGroups>,
}

/// A volume with one target port, always optimized.
pub struct SinglePort {
    /// Target port group identifier.
    pub group: u16,
    /// Relative target port identifier.
    pub relative_id: u16,
}

impl PortGroups for SinglePort {
    fn groups(&self) -> Vec<PortGroup> {
        vec![PortGroup {
            id: self.group,
            state: AccessState::Optimized,
            preferred: false,
            ports: vec![self.relative_id],
        }]
    }

    fn state(&self, _group: u16) -> AccessState {
        AccessState::Optimized
    }
}

/// The parameter data of REPORT TARGET PORT GROUPS (SPC-4 6.37), uncut.
pub fn report_target_port_groups(groups: &[PortGroup], extended_header: bool) -> Vec<u8> {
    /// T_SUP, O_SUP, U_SUP, S_SUP, AN_SUP, AO_SUP.
    const SUPPORTED_STATES: u8 = 0x80 | 0x40 | 0x08 | 0x04 | 0x02 | 0x01;
    /// Seconds that a transition may take before a host gives the path up.
    const IMPLICIT_TRANSITION_SECONDS: u8 = 10;
    let mut bytes = vec![0; 4];
    if extended_header {
        bytes.extend_from_slice(&[0x10, IMPLICIT_TRANSITION_SECONDS, 0, 0]);
    }
    for group in groups {
        let preferred = if group.preferred { 0x80 } else { 0 };
        bytes.extend_from_slice(&[preferred | group.state as u8, SUPPORTED_STATES]);
        bytes.extend_from_slice(&group.id.to_be_bytes());
        // Status code 2: the state was altered by implicit behaviour.
        bytes.extend_from_slice(&[0, 2, 0, group.ports.len().min(255) as u8]);
        for port in group.ports.iter().take(255) {
            bytes.extend_from_slice(&[0, 0]);
            bytes.extend_from_slice(&port.to_be_bytes());
        }
    }
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_lists_state_and_ports_of_every_group() {
        let groups = [
            PortGroup {
                id: 1,
                state: AccessState::Optimized,
                preferred: true,
                ports: vec![1],
            },
            PortGroup {
                id: 2,
                state: AccessState::Standby,
                preferred: false,
                ports: vec![2, 3],
            },
        ];
        let bytes = report_target_port_groups(&groups, false);
        assert_eq!(bytes[..4], [0, 0, 0, 28]);
        assert_eq!(bytes[4..16], [0x80, 0xcf, 0, 1, 0, 2, 0, 1, 0, 0, 0, 1]);
        assert_eq!(
            bytes[16..],
            [0x02, 0xcf, 0, 2, 0, 2, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3]
        );
    }
}
