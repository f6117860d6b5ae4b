//! Who talks to the unit, and what the unit has yet to tell it.

use holdfast_name::IscsiName;
pub use holdfast_reservation::Nexus;

use crate::reservation::Notice;
use crate::sense::Sense;

/// The iSCSI TransportID of a nexus's initiator port, `name,i,0xISID` (SPC-4 7.6.4.6), padded to
/// four bytes.
pub fn transport_id(nexus: &Nexus) -> Vec<u8> {
    let mut name = nexus.to_string().into_bytes();
    name.push(0);
    name.resize(name.len().next_multiple_of(4).max(20), 0);
    // A name of 223 bytes and the suffix stay far below the 16-bit length.
    let length = (name.len() as u16).to_be_bytes();
    let mut bytes = vec![0x45, 0, length[0], length[1]];
    bytes.extend_from_slice(&name);
    bytes
}

/// Initiator name and ISID of an iSCSI TransportID that names a port; `None` for any other one.
pub fn parse_transport_id(bytes: &[u8]) -> Option<(IscsiName, [u8; 6])> {
    let (&[format, _, high, low], name) = bytes.split_first_chunk()?;
    if format & 0xcf != 0x45 {
        return None;
    }
    let name = name.get(..usize::from(u16::from_be_bytes([high, low])))?;
    let end = name.iter().position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(&name[..end]).ok()?;
    let (name, isid) = text.split_once(",i,0x")?;
    let digits = isid.len() == 12 && isid.bytes().all(|byte| byte.is_ascii_hexdigit());
    let isid = u64::from_str_radix(isid, 16).ok().filter(|_| digits)?;
    let [_, _, isid @ ..] = isid.to_be_bytes();
    Some((IscsiName::new(name).ok()?, isid))
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

impl From<Notice> for Attention {
    fn from(notice: Notice) -> Self {
        match notice {
            Notice::ReservationsPreempted => Self::ReservationsPreempted,
            Notice::ReservationsReleased => Self::ReservationsReleased,
            Notice::RegistrationsPreempted => Self::RegistrationsPreempted,
            Notice::NexusLost => Self::NexusLoss,
        }
    }
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
        let bytes = transport_id(&nexus);
        assert_eq!(bytes[..2], [0x45, 0]);
        assert_eq!(
            usize::from(u16::from_be_bytes([bytes[2], bytes[3]])) + 4,
            bytes.len()
        );
        assert!(bytes.len().is_multiple_of(4));
        assert!(bytes[4..].starts_with(b"iqn.2026-01.test:a,i,0x00023d000001\0"));
    }

    #[test]
    fn transport_id_is_read_back_and_any_other_form_refused() {
        let nexus = Nexus {
            initiator: "iqn.2026-01.test:a".into(),
            isid: [0x40, 0, 0x3d, 0, 0, 0xab],
            target_port: 1,
        };
        let bytes = transport_id(&nexus);
        let read = parse_transport_id(&bytes);
        let name = IscsiName::new("iqn.2026-01.test:a").unwrap();
        assert_eq!(read, Some((name, nexus.isid)));
        let spelled = Nexus {
            initiator: "IQN.2026-01.Test:A".into(),
            ..nexus
        };
        assert_eq!(parse_transport_id(&transport_id(&spelled)), read);
        for (at, byte) in [(0, 0x05), (0, 0x46), (2, 1), (22, b';')] {
            let mut other = bytes.clone();
            other[at] = byte;
            assert_eq!(parse_transport_id(&other), None, "byte {at}");
        }
        assert_eq!(parse_transport_id(&bytes[..30]), None);
    }
}
