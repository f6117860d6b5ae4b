//! Who talks to the unit, and what the unit has yet to tell it.

use std::fmt;
use std::rc::Rc;

use crate::sense::Sense;

/// An I_T nexus: one initiator port seen through one target port.
///
/// For iSCSI the initiator port is the initiator's name and the session's ISID (RFC 7143 4.4.2),
/// the target port a portal group.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nexus {
    /// iSCSI name of the initiator.
    pub initiator: Rc<str>,
    /// Initiator part of the session identifier.
    pub isid: [u8; 6],
    /// Relative target port identifier.
    pub target_port: u16,
}

impl Nexus {
    /// The iSCSI TransportID of the initiator port, `name,i,0xISID` (SPC-4 7.6.4.6), padded to
    /// four bytes.
    pub fn transport_id(&self) -> Vec<u8> {
        let mut name = self.to_string().into_bytes();
        name.push(0);
        name.resize(name.len().next_multiple_of(4).max(20), 0);
        // A name of 223 bytes and the suffix stay far below the 16-bit length.
        let length = (name.len() as u16).to_be_bytes();
        let mut bytes = vec![0x45, 0, length[0], length[1]];
        bytes.extend_from_slice(&name);
        bytes
    }
}

impl fmt::Display for Nexus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{},i,0x", self.initiator)?;
        self.isid
            .iter()
            .try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Nexus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Nexus({self} port {})", self.target_port)
    }
}

/// A unit attention condition, in the order in which pending ones are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attention {
    /// 29/00: the nexus is new to the unit.
    PowerOn,
    /// 29/03: the logical unit was reset.
    Reset,
    /// 29/07: the nexus was lost and came back.
    NexusLoss,
    /// 2A/01: another nexus changed a mode page.
    ModeParametersChanged,
    /// 2A/03: another nexus cleared or preempted the reservation.
    ReservationsPreempted,
    /// 2A/04: the reservation of which this nexus was a registrant ended.
    ReservationsReleased,
    /// 2A/05: another nexus removed this one's registration.
    RegistrationsPreempted,
    /// 2A/06: the asymmetric access state changed.
    AccessStateChanged,
    /// 2A/09: the capacity changed.
    CapacityChanged,
    /// 2F/00: another nexus cleared the commands of this one.
    CommandsCleared,
}

impl Attention {
    /// The sense data that reports the condition.
    pub const fn sense(self) -> Sense {
        let (code, qualifier) = match self {
            Self::PowerOn => (0x29, 0x00),
            Self::Reset => (0x29, 0x03),
            Self::NexusLoss => (0x29, 0x07),
            Self::ModeParametersChanged => (0x2a, 0x01),
            Self::ReservationsPreempted => (0x2a, 0x03),
            Self::ReservationsReleased => (0x2a, 0x04),
            Self::RegistrationsPreempted => (0x2a, 0x05),
            Self::AccessStateChanged => (0x2a, 0x06),
            Self::CapacityChanged => (0x2a, 0x09),
            Self::CommandsCleared => (0x2f, 0x00),
        };
        Sense::unit_attention(code, qualifier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transport_id_is_the_padded_initiator_port_name() {
        let nexus = Nexus {
            initiator: "iqn.2026-01.test:a".into(),
            isid: [0, 2, 0x3d, 0, 0, 1],
            target_port: 1,
        };
        let bytes = nexus.transport_id();
        assert_eq!(bytes[..2], [0x45, 0]);
        assert_eq!(
            usize::from(u16::from_be_bytes([bytes[2], bytes[3]])) + 4,
            bytes.len()
        );
        assert!(bytes.len().is_multiple_of(4));
        assert!(bytes[4..].starts_with(b"iqn.2026-01.test:a,i,0x00023d000001\0"));
    }
}
