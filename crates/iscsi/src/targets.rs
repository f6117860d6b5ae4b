//! What a node tells the iSCSI front about its targets.

use std::rc::Rc;
use std::time::Duration;

use holdfast_scsi::BlockDevice;
use holdfast_scsi::ports::PortGroups;
use holdfast_scsi::reservation::Reservations;

use crate::chap::Secret;

/// The targets that a node serves. Every name is prepared ([`holdfast_name::IscsiName`]): two
/// spellings of one name are the same text here.
pub trait Targets {
    /// The targets that this initiator may use, for SendTargets.
    fn list(&self, initiator: &str) -> Vec<TargetSummary>;

    /// The target with this name, if this initiator may use it.
    fn open(&self, iqn: &str, initiator: &str) -> Option<Target>;

    /// How initiators prove themselves in discovery sessions.
    fn discovery_auth(&self) -> TargetAuth;

    /// Whether the target cannot be reached through this node at present: initiators are sent to
    /// their other paths.
    fn is_unreachable(&self, iqn: &str) -> bool {
        let _ = iqn;
        false
    }

    /// A clock that goes on while the process or the machine stands still. `None`: the server
    /// takes one that may stop while the machine sleeps.
    fn clock(&self) -> Option<Duration> {
        None
    }

    /// Another portal, `ip:port[,tpgt]`, to which the login should go instead.
    fn redirect(&self, iqn: &str, initiator: &str) -> Option<String> {
        let _ = (iqn, initiator);
        None
    }
}

/// A target as SendTargets shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetSummary {
    /// iSCSI name.
    pub iqn: String,
    /// `ip:port,tpgt`, with an IPv6 address in brackets.
    pub portals: Vec<String>,
}

/// A target that may be logged in to.
#[derive(Clone)]
pub struct Target {
    /// The volume behind LUN 0.
    pub device: Rc<dyn BlockDevice>,
    /// How initiators prove themselves.
    pub auth: TargetAuth,
    /// Portal group tag of this node; also the target port group identifier.
    pub portal_group_tag: u16,
    /// Relative target port identifier of this node, unique among the nodes.
    pub relative_port_id: u16,
    /// Access states of all portal groups; `None` if this node is the only one.
    pub port_groups: Option<Rc<dyn PortGroups>>,
    /// The reservation table; `None` keeps one in the memory of this process.
    pub reservations: Option<Rc<dyn Reservations>>,
}

/// How initiators prove themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetAuth {
    /// They need not.
    None,
    /// By CHAP with any of these: there are several while a secret is being replaced. Where the
    /// target can prove itself, an initiator that does not ask it to is refused.
    Chap(Vec<Credentials>),
    /// For discovery: by CHAP with any of these, if they offer CHAP; else they need not. An
    /// initiator that is set up with credentials sends them in discovery too, and some of them
    /// do not go on if they are not asked for.
    Optional(Vec<Credentials>),
}

/// One initiator's credentials, and those by which the target proves itself to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Name that the initiator gives.
    pub username: String,
    /// Secret that it knows.
    pub secret: Secret,
    /// Name and secret by which the target proves itself, if the initiator asks.
    pub mutual: Option<(String, Secret)>,
    /// Tells a target's credentials apart; a session remembers with which it logged in.
    pub number: u64,
}

impl TargetAuth {
    /// Whether a session that proved itself by the credentials with this number could log in
    /// now; `None` is one that proved nothing.
    pub(crate) fn accepts(&self, credential: Option<u64>) -> bool {
        match self {
            Self::None | Self::Optional(_) => true,
            Self::Chap(known) => {
                let mut numbers = known.iter().map(|one| Some(one.number));
                numbers.any(|number| number == credential)
            }
        }
    }

    /// Whether some credentials use one secret for both directions.
    pub(crate) fn shares_a_secret(&self) -> bool {
        match self {
            Self::None | Self::Optional(_) => false,
            Self::Chap(known) => known.iter().any(Credentials::share_a_secret),
        }
    }
}

impl Credentials {
    /// Whether one secret serves both directions, which RFC 7143 12.1.3 forbids: an answer to
    /// one side's challenge would be an answer to the other's.
    fn share_a_secret(&self) -> bool {
        self.mutual
            .as_ref()
            .is_some_and(|(_, own)| *own == self.secret)
    }
}
