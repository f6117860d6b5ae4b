//! Who talks to a unit.

use std::fmt;
use std::rc::Rc;

use holdfast_name::prepare_stored;
use serde::{Deserialize, Deserializer, Serialize};

/// An I_T nexus: one initiator port seen through one target port.
///
/// For iSCSI the initiator port is the initiator's name and the session's ISID (RFC 7143 4.4.2),
/// the target port a portal group.
///
/// The name is in the form for comparing ([`holdfast_name`]). Tables from before names were
/// prepared are read as if they had been: a host that registered as `HostX` is the host `hostx`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Nexus {
    /// iSCSI name of the initiator.
    #[serde(deserialize_with = "stored_name")]
    pub initiator: Rc<str>,
    /// Initiator part of the session identifier.
    pub isid: [u8; 6],
    /// Relative target port identifier.
    pub target_port: u16,
}

fn stored_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Rc<str>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(prepare_stored(&text))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nexus_stored_under_another_spelling_is_read_as_the_same() {
        let nexus = |initiator: &str| Nexus {
            initiator: initiator.into(),
            isid: [1; 6],
            target_port: 7,
        };
        let read = |stored: &Nexus| -> Nexus {
            let bytes = postcard::to_stdvec(stored).expect("plain data");
            postcard::from_bytes(&bytes).expect("a nexus")
        };
        let prepared = nexus("iqn.2020-01.test:hostx");
        assert_eq!(read(&nexus("iqn.2020-01.test:HostX")), prepared);
        assert_eq!(read(&prepared), prepared);
        let odd = nexus("Host_X");
        assert_eq!(read(&odd), odd, "what is no name stays what it is");
    }
}
