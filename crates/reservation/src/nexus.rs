//! Who talks to a unit.

use std::fmt;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

/// An I_T nexus: one initiator port seen through one target port.
///
/// For iSCSI the initiator port is the initiator's name and the session's ISID (RFC 7143 4.4.2),
/// the target port a portal group.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Nexus {
    /// iSCSI name of the initiator.
    pub initiator: Rc<str>,
    /// Initiator part of the session identifier.
    pub isid: [u8; 6],
    /// Relative target port identifier.
    pub target_port: u16,
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
