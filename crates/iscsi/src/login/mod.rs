//! The login phase (RFC 7143 section 6), as a state machine without I/O.
//!
//! ```text
//!            CSG=0              T, NSG=1                 T, NSG=3
//!  Initial ────────► Security ───────────► Operational ───────────► FullFeature
//!     │                  └───────────────────── T, NSG=3 ────────────────▲
//!     └──── CSG=1, no authentication required ──►┘
//! ```
//!
//! What always holds: where CHAP is required, neither the operational stage nor the full-feature
//! phase is reachable without it; the response to the initiator's challenge is computed only
//! after its own response was verified; a refusal is final; at most [`TEXT_BYTES_MAX`] bytes of
//! text are taken.

mod operational;
mod security;

use std::fmt;

use bytes::{Bytes, BytesMut};
use holdfast_name::{IscsiName, NAME_BYTES_MAX};
use thiserror::Error;

pub use operational::OperationalStage;
pub use security::SecurityStage;

use crate::chap::Algorithm;
use crate::negotiation::{Negotiation, Parameters};
use crate::pdu::{CONTINUE, FINAL, InitiatorOpcode, Pdu, TargetOpcode};
use crate::targets::TargetAuth;
use crate::text::{self, Pair, Writer};

/// Most text that one login may send, in bytes.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// Login stages, by the codes of the CSG and NSG fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Authentication.
    Security = 0,
    /// Negotiation of operational keys.
    Operational = 1,
    /// The login is over.
    FullFeature = 3,
}

impl Stage {
    const fn from_code(code: u8) -> Option<Self> {
        Some(match code & 3 {
            0 => Self::Security,
            1 => Self::Operational,
            3 => Self::FullFeature,
            _ => return None,
        })
    }
}

/// Why a login is refused (RFC 7143 11.13.5). Nothing of the session exists afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)] // The messages say what the variants mean.
pub enum LoginStatus {
    #[error("the target is at {0} for now")]
    MovedTemporarily(String),
    #[error("the initiator broke the protocol")]
    InitiatorError,
    #[error("authentication failed")]
    AuthenticationFailed,
    #[error("the initiator may not use the target")]
    Forbidden,
    #[error("the target does not exist")]
    NotFound,
    #[error("unsupported protocol version")]
    UnsupportedVersion,
    #[error("the session takes no further connection")]
    TooManyConnections,
    #[error("a required key is missing")]
    MissingParameter,
    #[error("unsupported session type")]
    SessionTypeUnsupported,
    #[error("the session does not exist")]
    NoSuchSession,
    #[error("the target failed")]
    TargetError,
    #[error("the target is not in service now")]
    ServiceUnavailable,
    #[error("the target is out of resources")]
    OutOfResources,
}

impl LoginStatus {
    /// Status class and detail.
    pub const fn code(&self) -> [u8; 2] {
        match self {
            Self::MovedTemporarily(_) => [1, 1],
            Self::InitiatorError => [2, 0],
            Self::AuthenticationFailed => [2, 1],
            Self::Forbidden => [2, 2],
            Self::NotFound => [2, 3],
            Self::UnsupportedVersion => [2, 5],
            Self::TooManyConnections => [2, 6],
            Self::MissingParameter => [2, 7],
            Self::SessionTypeUnsupported => [2, 9],
            Self::NoSuchSession => [2, 0x0a],
            Self::TargetError => [3, 0],
            Self::ServiceUnavailable => [3, 1],
            Self::OutOfResources => [3, 2],
        }
    }
}

/// What a session is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionKind {
    /// To ask which targets there are.
    Discovery,
    /// To use the target with this name.
    Normal(IscsiName),
}

/// What the node says about a login before any authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admittance {
    /// How the initiator must prove itself.
    pub auth: TargetAuth,
    /// Portal group tag; zero and unused for discovery.
    pub portal_group_tag: u16,
}

/// A CHAP challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Identifier.
    pub identifier: u8,
    /// Random bytes, never used before.
    pub bytes: Vec<u8>,
}

/// What a login asks of its surroundings.
pub trait Policy {
    /// Whether this initiator may log in, and how.
    fn admit(&self, kind: &SessionKind, initiator: &IscsiName) -> Result<Admittance, LoginStatus>;
    /// A fresh challenge, remembered as outstanding until the login ends.
    fn issue_challenge(&self, algorithm: Algorithm) -> Challenge;
    /// Whether these bytes are a challenge of any login that has not ended.
    fn is_outstanding(&self, challenge: &[u8]) -> bool;
}

/// A login that has succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullFeature {
    /// What the session is for.
    pub kind: SessionKind,
    /// iSCSI name of the initiator.
    pub initiator: IscsiName,
    /// Initiator part of the session identifier.
    pub isid: [u8; 6],
    /// Connection identifier.
    pub connection: u16,
    /// Portal group tag of the session.
    pub portal_group_tag: u16,
    /// The number of the credentials that proved the initiator; `None` if it had to prove nothing.
    pub credential: Option<u64>,
    /// What was negotiated.
    pub parameters: Parameters,
    /// CmdSN of the first command.
    pub command_number: u32,
    /// StatSN of the first response after the login.
    pub status_number: u32,
    response: Pdu,
}

impl FullFeature {
    /// The final Login Response, which gives the session its handle and opens its window.
    pub fn response(&self, session_handle: u16, max_command: u32) -> Pdu {
        let mut pdu = self.response.clone();
        pdu.put_u16(14, session_handle);
        pdu.put_u32(32, max_command);
        pdu
    }

    /// A refusal in place of the final response.
    pub fn refuse(&self, status: &LoginStatus) -> Pdu {
        let mut pdu = self.response.clone();
        pdu.header[1] = 0;
        pdu.header[36..38].copy_from_slice(&status.code());
        pdu.data = Bytes::new();
        pdu
    }
}

/// What follows from a request.
#[derive(Debug)]
pub enum Step {
    /// Send the response and go on.
    Reply(Box<Login>, Pdu),
    /// The login succeeded; its response is sent when the session exists.
    Established(Box<FullFeature>),
    /// Send the response and close.
    Refused(Pdu, LoginStatus),
    /// Close: this is not a login.
    Close,
}

/// A login under way.
pub enum Login {
    /// No stage has begun.
    Initial(Initial),
    /// Authentication.
    Security(SecurityStage),
    /// Negotiation.
    Operational(OperationalStage),
}

impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Initial(_) => "Login::Initial",
            Self::Security(_) => "Login::Security",
            Self::Operational(_) => "Login::Operational",
        })
    }
}

impl Default for Login {
    fn default() -> Self {
        Self::Initial(Initial { exchange: None })
    }
}

/// A login whose first text may not be complete yet.
pub struct Initial {
    exchange: Option<Exchange>,
}

/// A login request, decoded.
struct Request {
    transit: Option<Stage>,
    more: bool,
    current: Stage,
    task_tag: u32,
    session_handle: u16,
    isid: [u8; 6],
    connection: u16,
    data: Bytes,
}

fn decode(pdu: &Pdu) -> Result<Request, LoginStatus> {
    let flags = pdu.header[1];
    let wrong = LoginStatus::InitiatorError;
    let current = Stage::from_code(flags >> 2).ok_or(wrong.clone())?;
    let more = flags & CONTINUE != 0;
    let transit = match (flags & FINAL != 0, Stage::from_code(flags)) {
        (false, _) => None,
        (true, Some(next)) if !more && next as u8 > current as u8 => Some(next),
        (true, _) => return Err(wrong),
    };
    let mut isid = [0; 6];
    isid.copy_from_slice(&pdu.header[8..14]);
    Ok(Request {
        transit,
        more,
        current,
        task_tag: pdu.task_tag(),
        session_handle: pdu.u16_at(14),
        isid,
        connection: pdu.u16_at(20),
        data: pdu.data.clone(),
    })
}

/// What stays the same, or is collected, over a whole login.
struct Exchange {
    isid: [u8; 6],
    connection: u16,
    session_handle: u16,
    task_tag: u32,
    command_number: u32,
    status_number: u32,
    text: BytesMut,
    text_bytes: usize,
    kind: SessionKind,
    initiator: Option<IscsiName>,
    portal_group_tag: u16,
    credential: Option<u64>,
    announced: bool,
    negotiation: Negotiation,
}

impl Exchange {
    fn new(pdu: &Pdu, request: &Request) -> Self {
        Self {
            isid: request.isid,
            connection: request.connection,
            session_handle: request.session_handle,
            task_tag: request.task_tag,
            command_number: pdu.command_number(),
            status_number: pdu.u32_at(28),
            text: BytesMut::new(),
            text_bytes: 0,
            kind: SessionKind::Discovery,
            initiator: None,
            portal_group_tag: 0,
            credential: None,
            announced: false,
            negotiation: Negotiation::default(),
        }
    }

    fn belongs(&self, request: &Request) -> bool {
        self.isid == request.isid
            && self.connection == request.connection
            && self.session_handle == request.session_handle
            && self.task_tag == request.task_tag
    }

    /// Adds the text of a request; `None` until the last part is there.
    fn collect(&mut self, request: &Request) -> Result<Option<Vec<Pair>>, LoginStatus> {
        self.text_bytes += request.data.len();
        if self.text_bytes > TEXT_BYTES_MAX {
            return Err(LoginStatus::InitiatorError);
        }
        self.text.extend_from_slice(&request.data);
        if request.more {
            return Ok(None);
        }
        let text = self.text.split();
        text::parse(&text)
            .map(Some)
            .map_err(|_| LoginStatus::InitiatorError)
    }

    /// The keys that the first response must carry.
    fn announce(&mut self, writer: &mut Writer) {
        if !self.announced && matches!(self.kind, SessionKind::Normal(_)) {
            writer.put("TargetPortalGroupTag", &self.portal_group_tag.to_string());
        }
        self.announced = true;
    }

    fn response(&mut self, current: Stage, transit: Option<Stage>, data: Bytes) -> Pdu {
        let mut pdu = Pdu::new(TargetOpcode::Login as u8);
        pdu.header[1] = (current as u8) << 2;
        if let Some(next) = transit {
            pdu.header[1] |= FINAL | next as u8;
        }
        pdu.header[8..14].copy_from_slice(&self.isid);
        pdu.put_u16(14, self.session_handle);
        pdu.put_u32(16, self.task_tag);
        // The login does not consume a command number and opens a window of one.
        let command = self.command_number;
        crate::pdu::build::stamp(&mut pdu, self.status_number, command, command);
        self.status_number = self.status_number.wrapping_add(1);
        pdu.data = data;
        pdu
    }

    fn refuse(&mut self, current: Stage, status: LoginStatus) -> Step {
        let mut writer = Writer::default();
        if let LoginStatus::MovedTemporarily(address) = &status {
            writer.put("TargetAddress", address);
        }
        let mut pdu = self.response(current, None, writer.finish());
        pdu.header[36..38].copy_from_slice(&status.code());
        Step::Refused(pdu, status)
    }

    /// The names of the first request, and what the node says to them.
    fn introduce(
        &mut self,
        pairs: &mut Vec<Pair>,
        policy: &dyn Policy,
    ) -> Result<TargetAuth, LoginStatus> {
        let initiator = take(pairs, "InitiatorName")?.ok_or(LoginStatus::MissingParameter)?;
        let session_type = take(pairs, "SessionType")?;
        let target = take(pairs, "TargetName")?;
        // What is no name of an initiator is an initiator's error; what is no name of a target is
        // not found, unless it is no text of a name at all.
        let initiator = IscsiName::new(&initiator).map_err(|_| LoginStatus::InitiatorError)?;
        let no_text = |name: &String| name.is_empty() || name.len() > NAME_BYTES_MAX;
        if target.as_ref().is_some_and(no_text) {
            return Err(LoginStatus::InitiatorError);
        }
        // An absent SessionType means Normal; some initiators leave it out.
        self.kind = match session_type.as_deref() {
            Some("Discovery") => SessionKind::Discovery,
            None | Some("Normal") => {
                let target = target.ok_or(LoginStatus::MissingParameter)?;
                let target = IscsiName::new(&target).map_err(|_| LoginStatus::NotFound)?;
                SessionKind::Normal(target)
            }
            Some(_) => return Err(LoginStatus::SessionTypeUnsupported),
        };
        // MaxConnections is 1 and no session outlives its connection: there is none to join.
        if self.session_handle != 0 {
            return Err(LoginStatus::NoSuchSession);
        }
        let admittance = policy.admit(&self.kind, &initiator)?;
        if admittance.auth.shares_a_secret() {
            return Err(LoginStatus::TargetError);
        }
        self.initiator = Some(initiator);
        self.portal_group_tag = admittance.portal_group_tag;
        self.negotiation = Negotiation::new(self.kind == SessionKind::Discovery);
        Ok(admittance.auth)
    }

    fn establish(mut self, current: Stage, data: Bytes) -> Step {
        let response = self.response(current, Some(Stage::FullFeature), data);
        let initiator = self.initiator.expect("no stage begins without the names");
        Step::Established(Box::new(FullFeature {
            kind: self.kind,
            initiator,
            isid: self.isid,
            connection: self.connection,
            portal_group_tag: self.portal_group_tag,
            credential: self.credential,
            parameters: self.negotiation.parameters(),
            command_number: self.command_number,
            status_number: self.status_number,
            response,
        }))
    }
}

/// Takes a key out of the list; twice is an error.
fn take(pairs: &mut Vec<Pair>, key: &str) -> Result<Option<String>, LoginStatus> {
    let mut found = None;
    let mut twice = false;
    pairs.retain_mut(|pair| {
        let wanted = pair.key == key;
        if wanted {
            twice |= found.replace(std::mem::take(&mut pair.value)).is_some();
        }
        !wanted
    });
    if twice {
        Err(LoginStatus::InitiatorError)
    } else {
        Ok(found)
    }
}

impl Login {
    /// Takes a PDU of the initiator.
    pub fn handle(self, pdu: &Pdu, policy: &dyn Policy) -> Step {
        if pdu.opcode() != InitiatorOpcode::Login as u8 || !pdu.additional.is_empty() {
            return Step::Close;
        }
        let request = match decode(pdu) {
            Ok(request) => request,
            Err(status) => return self.refuse_undecoded(pdu, status),
        };
        match self {
            Self::Initial(initial) => initial.handle(pdu, &request, policy),
            Self::Security(stage) => stage.handle(&request, policy),
            Self::Operational(stage) => stage.handle(&request),
        }
    }

    fn refuse_undecoded(self, pdu: &Pdu, status: LoginStatus) -> Step {
        let mut isid = [0; 6];
        isid.copy_from_slice(&pdu.header[8..14]);
        let request = Request {
            transit: None,
            more: false,
            current: Stage::Security,
            task_tag: pdu.task_tag(),
            session_handle: pdu.u16_at(14),
            isid,
            connection: pdu.u16_at(20),
            data: Bytes::new(),
        };
        match self {
            Self::Initial(Initial {
                exchange: Some(mut exchange),
            }) => exchange.refuse(Stage::Security, status),
            Self::Initial(Initial { exchange: None }) => {
                Exchange::new(pdu, &request).refuse(Stage::Security, status)
            }
            Self::Security(stage) => stage.refuse(status),
            Self::Operational(stage) => stage.refuse(status),
        }
    }
}

impl Initial {
    fn handle(self, pdu: &Pdu, request: &Request, policy: &dyn Policy) -> Step {
        let first = self.exchange.is_none();
        let mut exchange = self.exchange.unwrap_or_else(|| Exchange::new(pdu, request));
        // Version-min above 0: the initiator cannot speak the only version there is.
        if pdu.header[3] > 0 {
            return exchange.refuse(request.current, LoginStatus::UnsupportedVersion);
        }
        if (!first && !exchange.belongs(request)) || request.current == Stage::FullFeature {
            return exchange.refuse(request.current, LoginStatus::InitiatorError);
        }
        let mut pairs = match exchange.collect(request) {
            Ok(Some(pairs)) => pairs,
            Ok(None) => {
                let response = exchange.response(request.current, None, Bytes::new());
                let login = Login::Initial(Initial {
                    exchange: Some(exchange),
                });
                return Step::Reply(Box::new(login), response);
            }
            Err(status) => return exchange.refuse(request.current, status),
        };
        let auth = match exchange.introduce(&mut pairs, policy) {
            Ok(auth) => auth,
            Err(status) => return exchange.refuse(request.current, status),
        };
        match (request.current, auth) {
            (Stage::Security, auth) => {
                SecurityStage::new(exchange, auth).negotiate(pairs, request, policy)
            }
            // open-iscsi without credentials begins a discovery session like this.
            (Stage::Operational, TargetAuth::None | TargetAuth::Optional(_)) => {
                OperationalStage::new(exchange).negotiate(pairs, request)
            }
            (Stage::Operational, TargetAuth::Chap(_)) | (Stage::FullFeature, _) => {
                exchange.refuse(request.current, LoginStatus::AuthenticationFailed)
            }
        }
    }
}

#[cfg(test)]
mod tests;
