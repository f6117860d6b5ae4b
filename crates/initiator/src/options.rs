//! What an initiator offers at login, and what came out of it.

use std::time::Duration;

use crate::chap::Chap;
use crate::error::Error;

/// What to offer for a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigestOffer {
    /// `None`.
    Off,
    /// `CRC32C,None`: the target chooses.
    Prefer,
    /// `CRC32C`: no session without it.
    Require,
}

impl DigestOffer {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Off => "None",
            Self::Prefer => "CRC32C,None",
            Self::Require => "CRC32C",
        }
    }
}

/// The initiator's part of a session's identity (RFC 7143 section 10.1.1). Two logins with the
/// same initiator name and ISID at the same target portal group are the same session: the second
/// ends the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isid(pub [u8; 6]);

impl Isid {
    /// A fresh ISID of the "random" format (type bits 10b).
    ///
    /// # Panics
    /// If the operating system gives no randomness.
    pub fn random() -> Self {
        let mut bytes = [0; 6];
        aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives randomness");
        bytes[0] = 0x80;
        Self(bytes)
    }
}

/// Everything about a session but where it goes.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The initiator's iSCSI name.
    pub initiator: String,
    /// The initiator's part of the session identity.
    pub isid: Isid,
    /// Authentication; `None` logs in without.
    pub chap: Option<Chap>,
    /// CRC32C over headers.
    pub header_digest: DigestOffer,
    /// CRC32C over data.
    pub data_digest: DigestOffer,
    /// Offer to send the first write data inside the command.
    pub immediate_data: bool,
    /// Insist on R2T before any data beyond the immediate.
    pub initial_r2t: bool,
    /// The longest data segment to accept, in bytes (512 to 2^24-1).
    pub max_receive_segment: u32,
    /// The longest Data-In or R2T sequence to offer, in bytes.
    pub max_burst: u32,
    /// The most unsolicited data of one command to offer, in bytes; at most `max_burst`.
    pub first_burst: u32,
    /// R2Ts of one command that may be outstanding.
    pub max_outstanding_r2t: u16,
    /// Commands in flight at most, whatever window the target opens (1 to 1024).
    pub queue_depth: usize,
    /// Time for TCP connection and login together, per portal.
    pub login_limit: Duration,
}

impl SessionOptions {
    /// Usual values: no authentication, no digests, immediate and unsolicited data on.
    pub fn new(initiator: impl Into<String>) -> Self {
        Self {
            initiator: initiator.into(),
            isid: Isid::random(),
            chap: None,
            header_digest: DigestOffer::Off,
            data_digest: DigestOffer::Off,
            immediate_data: true,
            initial_r2t: false,
            max_receive_segment: 256 * 1024,
            max_burst: 1024 * 1024,
            first_burst: 256 * 1024,
            max_outstanding_r2t: 1,
            queue_depth: 128,
            login_limit: Duration::from_secs(5),
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let lengths = 512..=0xff_ffff;
        let reason = if self.initiator.is_empty() || self.initiator.len() > 223 {
            "the initiator name must have 1 to 223 bytes"
        } else if !lengths.contains(&self.max_receive_segment)
            || !lengths.contains(&self.max_burst)
            || !lengths.contains(&self.first_burst)
        {
            "lengths must lie between 512 and 2^24-1 bytes"
        } else if self.first_burst > self.max_burst {
            "first_burst must not exceed max_burst"
        } else if !(1..=1024).contains(&self.queue_depth) || self.max_outstanding_r2t == 0 {
            "queue_depth must be 1 to 1024 and max_outstanding_r2t at least 1"
        } else if self
            .chap
            .as_ref()
            .is_some_and(|chap| chap.algorithms.is_empty())
        {
            "CHAP needs at least one algorithm"
        } else if self.chap.as_ref().is_some_and(|chap| {
            // With equal secrets, a false target could have us answer its own challenge.
            chap.mutual
                .as_ref()
                .is_some_and(|mutual| mutual.secret == chap.secret)
        }) {
            "the target's CHAP secret must differ from the initiator's"
        } else {
            return Ok(());
        };
        Err(Error::BadOptions { reason })
    }
}

/// What login agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// CRC32C over headers.
    pub header_digest: bool,
    /// CRC32C over data.
    pub data_digest: bool,
    /// Every byte beyond the immediate data waits for R2T.
    pub initial_r2t: bool,
    /// Write data may travel inside the command.
    pub immediate_data: bool,
    /// The longest data segment that the target accepts, in bytes.
    pub max_send_segment: u32,
    /// The longest solicited sequence, in bytes.
    pub max_burst: u32,
    /// The most unsolicited data of one command, in bytes.
    pub first_burst: u32,
    /// The target portal group that answered, if it said so.
    pub portal_group: Option<u16>,
    /// The target's part of the session identity.
    pub tsih: u16,
}

impl Default for Negotiated {
    /// What holds before any key was negotiated (RFC 7143 section 13).
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: true,
            max_send_segment: 8192,
            max_burst: 262_144,
            first_burst: 65_536,
            portal_group: None,
            tsih: 0,
        }
    }
}
