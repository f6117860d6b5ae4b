//! Target ports and their asymmetric access states (SPC-4 5.11).
//!
//! States change by themselves, as the cluster decides, and on a host's wish (TPGS 11b): a host may
//! ask for one group to be active/optimized, which moves the volume there. All other states follow.

use std::rc::Rc;

use futures::future::LocalBoxFuture;
use thiserror::Error;

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
    /// A number that stays as long as no group's state changes; called for every command.
    fn fingerprint(&self) -> u64;
    /// Makes a group, one of [`PortGroups::groups`], active/optimized; resolves when its node
    /// serves the volume, or cannot in time.
    fn optimize(&self, group: u16) -> LocalBoxFuture<'static, Result<(), NotOptimized>>;
}

/// A group could not be made active/optimized; another one is, or none is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the target port group could not be made active/optimized")]
pub struct NotOptimized;

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

    fn fingerprint(&self) -> u64 {
        0
    }

    fn optimize(&self, _group: u16) -> LocalBoxFuture<'static, Result<(), NotOptimized>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// The parameter data of REPORT TARGET PORT GROUPS (SPC-4 6.37), uncut.
pub fn report_target_port_groups(groups: &[PortGroup], extended_header: bool) -> Vec<u8> {
    /// T_SUP, O_SUP, U_SUP, S_SUP, AN_SUP, AO_SUP: states that a group may be in. Which of them can
    /// be set is a matter of SET TARGET PORT GROUPS.
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
        // Status code 0: which of explicit and implicit behaviour altered the state last is known
        // to the node alone that a host asked.
        bytes.extend_from_slice(&[0, 0, 0, group.ports.len().min(255) as u8]);
        for port in group.ports.iter().take(255) {
            bytes.extend_from_slice(&[0, 0]);
            bytes.extend_from_slice(&port.to_be_bytes());
        }
    }
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Reads the parameter list of SET TARGET PORT GROUPS (SPC-4 6.45): the group that is to be
/// active/optimized, if the list wants any change.
///
/// Exactly one group may be asked to be active/optimized. Others may be named active/non-optimized,
/// which they then are anyway. No other state can be set: INVALID FIELD IN PARAMETER LIST.
pub fn parse_set_target_port_groups(
    list: &[u8],
    groups: &[PortGroup],
) -> Result<Option<u16>, Sense> {
    const HEADER_BYTES: usize = 4;
    if list.is_empty() {
        return Ok(None);
    }
    if list.len() < HEADER_BYTES || !list.len().is_multiple_of(4) {
        return Err(Sense::PARAMETER_LENGTH);
    }
    let invalid = |byte: usize| Sense::INVALID_PARAMETER.at_parameter_byte(byte as u16);
    let mut optimized = None;
    let mut non_optimized = Vec::new();
    for (index, descriptor) in list[HEADER_BYTES..].chunks_exact(4).enumerate() {
        let at = HEADER_BYTES + 4 * index;
        let id = u16::from_be_bytes([descriptor[2], descriptor[3]]);
        let group = groups.iter().find(|group| group.id == id);
        let group = group.ok_or(invalid(at + 2))?;
        match descriptor[0] & 0x0f {
            state if state == AccessState::Optimized as u8 => {
                if optimized.is_some_and(|other| other != id) {
                    return Err(invalid(at));
                }
                optimized = Some(id);
            }
            state if state == AccessState::NonOptimized as u8 => non_optimized.push((at, group)),
            _ => return Err(invalid(at)),
        }
    }
    for (at, group) in non_optimized {
        let agrees = match optimized {
            Some(id) => group.id != id,
            // Somebody has to be the owner: nobody else was named.
            None => group.state == AccessState::NonOptimized,
        };
        if !agrees {
            return Err(invalid(at));
        }
    }
    Ok(optimized)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_groups() -> [PortGroup; 2] {
        let group = |id, state| PortGroup {
            id,
            state,
            preferred: false,
            ports: vec![id],
        };
        [
            group(1, AccessState::Optimized),
            group(0x102, AccessState::NonOptimized),
        ]
    }

    #[test]
    fn one_group_is_asked_to_be_optimized_and_the_others_at_most_confirmed() {
        let parse = |list: &[u8]| parse_set_target_port_groups(list, &two_groups());
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(parse(&[0; 4]), Ok(None));
        assert_eq!(parse(&[0, 0, 0, 0, 0, 0, 1, 2]), Ok(Some(0x102)));
        let both = [0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 1, 2];
        assert_eq!(parse(&both), Ok(Some(0x102)));
        assert_eq!(parse(&[0, 0, 0, 0, 1, 0, 1, 2]), Ok(None), "as it is");
    }

    #[test]
    fn lists_that_ask_for_what_cannot_be_are_refused_where_they_do() {
        let parse = |list: &[u8]| parse_set_target_port_groups(list, &two_groups());
        let invalid = |byte| Err(Sense::INVALID_PARAMETER.at_parameter_byte(byte));
        for length in [1, 3, 5, 6, 7] {
            assert_eq!(parse(&vec![0; length]), Err(Sense::PARAMETER_LENGTH));
        }
        assert_eq!(
            parse(&[0, 0, 0, 0, 0, 0, 0, 9]),
            invalid(6),
            "no such group"
        );
        for state in [2, 3, 4, 14, 15] {
            assert_eq!(parse(&[0, 0, 0, 0, state, 0, 1, 2]), invalid(4), "{state}");
        }
        let two_owners = [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2];
        assert_eq!(parse(&two_owners), invalid(8));
        let twice = [0, 0, 0, 0, 1, 0, 1, 2, 0, 0, 1, 2];
        assert_eq!(parse(&twice), invalid(4));
        assert_eq!(parse(&[0, 0, 0, 0, 1, 0, 0, 1]), invalid(4), "no owner");
    }

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
        assert_eq!(bytes[4..16], [0x80, 0xcf, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!(
            bytes[16..],
            [0x02, 0xcf, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3]
        );
    }
}
