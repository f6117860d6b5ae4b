//! Operational keys (RFC 7143 section 13): what this target offers and how a value is agreed.

use std::collections::BTreeSet;

use crate::pdu::framing::Digests;
use crate::text::{Pair, parse_number};

/// Longest data segment that this target receives in one PDU. As long as [`FIRST_BURST_BYTES`]:
/// a small write then arrives in one piece and needs no copy.
pub const RECEIVE_BYTES_MAX: u32 = 256 << 10;

/// Most data that an initiator may send for a command without being asked.
pub const FIRST_BURST_BYTES: u32 = 256 << 10;

/// Most data that one R2T asks for.
pub const MAX_BURST_BYTES: u32 = 1 << 20;

/// Longest data segment sent in one PDU, whatever the initiator would take: a longer one would
/// hold up the responses behind it.
pub const SEND_BYTES_MAX: u32 = 256 << 10;

const _: () = assert!(FIRST_BURST_BYTES <= MAX_BURST_BYTES);
const _: () = assert!(FIRST_BURST_BYTES <= RECEIVE_BYTES_MAX);

/// What the two sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Digests on the connection, from the first full-feature PDU on.
    pub digests: Digests,
    /// Longest data segment that the initiator receives, in bytes.
    pub send_bytes_max: u32,
    /// Whether a write must wait for an R2T.
    pub initial_r2t: bool,
    /// Whether a command PDU may carry data.
    pub immediate_data: bool,
    /// Longest sequence of Data-In PDUs, or of Data-Out PDUs for one R2T, in bytes.
    pub max_burst_bytes: u32,
    /// Most unsolicited data for one command, in bytes.
    pub first_burst_bytes: u32,
}

impl Default for Parameters {
    /// The values that hold if nobody negotiates.
    fn default() -> Self {
        Self {
            digests: Digests::default(),
            send_bytes_max: 8192,
            initial_r2t: true,
            immediate_data: true,
            max_burst_bytes: MAX_BURST_BYTES.min(262_144),
            first_burst_bytes: FIRST_BURST_BYTES.min(65_536),
        }
    }
}

/// What to answer to an offered key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing: the key is a declaration.
    Silent,
    /// This value.
    Value(String),
    /// `Reject`: the value is not valid for the key; the key keeps its present value.
    Reject,
    /// `Irrelevant`: the key means nothing in this session.
    Irrelevant,
    /// `NotUnderstood`.
    NotUnderstood,
    /// The key was offered before, or must not be offered here: the login has failed.
    ProtocolError,
}

/// A negotiation under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Negotiation {
    parameters: Parameters,
    offered: BTreeSet<String>,
    discovery: bool,
}

/// Whether a key may be offered in any login stage.
pub fn allowed_in_security_stage(key: &str) -> bool {
    matches!(
        key,
        "InitiatorAlias" | "MaxRecvDataSegmentLength" | "TargetAlias"
    )
}

/// Whether only the login itself reads the key.
pub fn is_declaration_of_names(key: &str) -> bool {
    matches!(key, "InitiatorName" | "TargetName" | "SessionType")
}

fn yes_or_no(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

fn boolean(agreed: bool) -> Reply {
    Reply::Value(if agreed { "Yes" } else { "No" }.to_owned())
}

fn number_in(value: &str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
    parse_number(value).filter(|number| range.contains(number))
}

fn first_common(value: &str, supported: &[&str]) -> Reply {
    let chosen = value.split(',').find(|offered| supported.contains(offered));
    chosen.map_or(Reply::Reject, |chosen| Reply::Value(chosen.to_owned()))
}

impl Negotiation {
    /// A negotiation for a discovery or a normal session.
    pub fn new(discovery: bool) -> Self {
        Self {
            discovery,
            ..Self::default()
        }
    }

    /// What has been agreed so far.
    ///
    /// The first burst exceeds the burst only where the initiator agreed on a short burst and left
    /// the first burst at its default: it may then use that.
    pub fn parameters(&self) -> Parameters {
        self.parameters
    }

    /// Sorts the keys of one text so that each can be answered when its turn comes.
    ///
    /// Keys of one text have no order. FirstBurstLength must not exceed MaxBurstLength (RFC 7143
    /// 13.14), so it is answered after that.
    pub fn sort(pairs: &mut [Pair]) {
        pairs.sort_by_key(|pair| pair.key == "FirstBurstLength");
    }

    /// Takes an offer or a declaration of the initiator.
    pub fn offer(&mut self, key: &str, value: &str) -> Reply {
        if !self.offered.insert(key.to_owned()) {
            return Reply::ProtocolError;
        }
        let parameters = &mut self.parameters;
        /// Bounds of the burst and segment lengths (RFC 7143 13.12 to 13.14).
        const LENGTHS: std::ops::RangeInclusive<u32> = 512..=(1 << 24) - 1;
        match key {
            "HeaderDigest" | "DataDigest" => {
                let reply = first_common(value, &["CRC32C", "None"]);
                let agreed = reply == Reply::Value("CRC32C".to_owned());
                let digest = if key == "HeaderDigest" {
                    &mut parameters.digests.header
                } else {
                    &mut parameters.digests.data
                };
                *digest = agreed;
                reply
            }
            "MaxRecvDataSegmentLength" => match number_in(value, LENGTHS) {
                Some(length) => {
                    parameters.send_bytes_max = length.min(SEND_BYTES_MAX);
                    Reply::Silent
                }
                None => Reply::Reject,
            },
            "InitiatorAlias" => Reply::Silent,
            "InitialR2T"
            | "ImmediateData"
            | "MaxBurstLength"
            | "FirstBurstLength"
            | "MaxOutstandingR2T"
            | "DataPDUInOrder"
            | "DataSequenceInOrder"
            | "MaxConnections"
                if self.discovery =>
            {
                Reply::Irrelevant
            }
            "InitialR2T" => match yes_or_no(value) {
                Some(wanted) => {
                    parameters.initial_r2t = wanted;
                    boolean(wanted)
                }
                None => Reply::Reject,
            },
            "ImmediateData" => match yes_or_no(value) {
                Some(wanted) => {
                    parameters.immediate_data = wanted;
                    boolean(wanted)
                }
                None => Reply::Reject,
            },
            "MaxBurstLength" => {
                // After an agreed first burst, a shorter burst is no valid value any more.
                let shortest = if self.offered.contains("FirstBurstLength") {
                    parameters.first_burst_bytes
                } else {
                    0
                };
                match number_in(value, LENGTHS).filter(|length| *length >= shortest) {
                    Some(length) => {
                        parameters.max_burst_bytes = length.min(MAX_BURST_BYTES);
                        Reply::Value(parameters.max_burst_bytes.to_string())
                    }
                    None => Reply::Reject,
                }
            }
            "FirstBurstLength" => match number_in(value, LENGTHS) {
                Some(length) => {
                    let longest = FIRST_BURST_BYTES.min(parameters.max_burst_bytes);
                    parameters.first_burst_bytes = length.min(longest);
                    Reply::Value(parameters.first_burst_bytes.to_string())
                }
                None => Reply::Reject,
            },
            // Data arrives in order and is asked for one burst at a time.
            "DataPDUInOrder" | "DataSequenceInOrder" => {
                yes_or_no(value).map_or(Reply::Reject, |_| boolean(true))
            }
            "MaxConnections" | "MaxOutstandingR2T" => match number_in(value, 1..=65_535) {
                Some(_) => Reply::Value("1".to_owned()),
                None => Reply::Reject,
            },
            "ErrorRecoveryLevel" => match number_in(value, 0..=2) {
                Some(_) => Reply::Value("0".to_owned()),
                None => Reply::Reject,
            },
            "DefaultTime2Wait" => match number_in(value, 0..=3600) {
                Some(seconds) => Reply::Value(seconds.to_string()),
                None => Reply::Reject,
            },
            // No task outlives its connection at error recovery level 0.
            "DefaultTime2Retain" => match number_in(value, 0..=3600) {
                Some(_) => Reply::Value("0".to_owned()),
                None => Reply::Reject,
            },
            "iSCSIProtocolLevel" => match number_in(value, 0..=31) {
                Some(level) => Reply::Value(level.min(1).to_string()),
                None => Reply::Reject,
            },
            "TaskReporting" => first_common(value, &["RFC3720"]),
            // Obsolete, but must never be answered NotUnderstood (RFC 7143 13.25).
            "IFMarker" | "OFMarker" => Reply::Value("No".to_owned()),
            "IFMarkInt" | "OFMarkInt" => Reply::Reject,
            // Only the target declares these.
            "TargetAlias" | "TargetAddress" | "TargetPortalGroupTag" => Reply::ProtocolError,
            "SendTargets" => Reply::ProtocolError,
            _ => Reply::NotUnderstood,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Reply {
        Reply::Value(text.to_owned())
    }

    #[test]
    fn the_linux_offer_is_agreed_with_exact_values() {
        let mut negotiation = Negotiation::new(false);
        for (key, offered, expected) in [
            ("HeaderDigest", "None", value("None")),
            ("DataDigest", "CRC32C,None", value("CRC32C")),
            ("DefaultTime2Wait", "2", value("2")),
            ("DefaultTime2Retain", "0", value("0")),
            ("ErrorRecoveryLevel", "0", value("0")),
            ("InitialR2T", "No", value("No")),
            ("ImmediateData", "Yes", value("Yes")),
            ("MaxBurstLength", "16776192", value("1048576")),
            ("FirstBurstLength", "262144", value("262144")),
            ("MaxOutstandingR2T", "1", value("1")),
            ("MaxConnections", "1", value("1")),
            ("DataPDUInOrder", "Yes", value("Yes")),
            ("DataSequenceInOrder", "Yes", value("Yes")),
            ("MaxRecvDataSegmentLength", "262144", Reply::Silent),
        ] {
            assert_eq!(negotiation.offer(key, offered), expected, "{key}");
        }
        let parameters = negotiation.parameters();
        assert_eq!(
            parameters.digests,
            Digests {
                header: false,
                data: true
            }
        );
        assert!(!parameters.initial_r2t && parameters.immediate_data);
        assert_eq!(parameters.send_bytes_max, 262_144);
        assert_eq!(parameters.max_burst_bytes, 1 << 20);
    }

    #[test]
    fn a_second_offer_of_a_key_is_a_protocol_error() {
        let mut negotiation = Negotiation::new(false);
        assert_eq!(negotiation.offer("InitialR2T", "No"), value("No"));
        assert_eq!(negotiation.offer("InitialR2T", "Yes"), Reply::ProtocolError);
    }

    #[test]
    fn bad_values_are_rejected_and_leave_the_default() {
        for (key, wrong) in [
            ("HeaderDigest", "MD5"),
            ("InitialR2T", "yes"),
            ("MaxBurstLength", "511"),
            ("FirstBurstLength", "16777216"),
            ("MaxRecvDataSegmentLength", "many"),
            ("ErrorRecoveryLevel", "3"),
        ] {
            let mut negotiation = Negotiation::new(false);
            assert_eq!(
                negotiation.offer(key, wrong),
                Reply::Reject,
                "{key}={wrong}"
            );
            assert_eq!(
                negotiation.parameters(),
                Negotiation::new(false).parameters()
            );
        }
    }

    #[test]
    fn obsolete_and_unknown_keys_are_told_apart() {
        let mut negotiation = Negotiation::new(false);
        assert_eq!(negotiation.offer("IFMarker", "Yes"), value("No"));
        assert_eq!(negotiation.offer("OFMarkInt", "2048"), Reply::Reject);
        assert_eq!(
            negotiation.offer("X-com.example.key", "1"),
            Reply::NotUnderstood
        );
    }

    #[test]
    fn what_is_answered_never_has_a_first_burst_above_the_burst() {
        let mut negotiation = Negotiation::new(false);
        assert_eq!(negotiation.offer("MaxBurstLength", "4096"), value("4096"));
        assert_eq!(
            negotiation.offer("FirstBurstLength", "65536"),
            value("4096")
        );
        assert_eq!(negotiation.parameters().first_burst_bytes, 4096);
        // The other way round in two texts: the burst cannot become shorter any more.
        let mut negotiation = Negotiation::new(false);
        assert_eq!(
            negotiation.offer("FirstBurstLength", "65536"),
            value("65536")
        );
        assert_eq!(negotiation.offer("MaxBurstLength", "4096"), Reply::Reject);
        let agreed = negotiation.parameters();
        assert_eq!(
            (agreed.first_burst_bytes, agreed.max_burst_bytes),
            (65_536, 262_144)
        );
        let mut negotiation = Negotiation::new(false);
        assert_eq!(negotiation.offer("FirstBurstLength", "4096"), value("4096"));
        assert_eq!(negotiation.offer("MaxBurstLength", "4096"), value("4096"));
        let mut negotiation = Negotiation::new(false);
        assert_eq!(
            negotiation.offer("FirstBurstLength", "1048576"),
            value("262144")
        );
    }

    #[test]
    fn a_first_burst_at_its_default_may_be_used_whatever_the_burst() {
        let mut negotiation = Negotiation::new(false);
        assert_eq!(negotiation.offer("MaxBurstLength", "4096"), value("4096"));
        assert_eq!(negotiation.parameters().first_burst_bytes, 65_536);
    }

    #[test]
    fn data_keys_are_irrelevant_to_discovery() {
        let mut negotiation = Negotiation::new(true);
        assert_eq!(negotiation.offer("InitialR2T", "No"), Reply::Irrelevant);
    }
}
