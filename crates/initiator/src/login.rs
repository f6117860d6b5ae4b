//! The login phase as a pure state machine (RFC 7143 sections 6 and 12.1).
//!
//! ```text
//!        with CHAP                                    without
//!  Method ──► Algorithm ──► Proof ──► Operational ◄── start
//!  AuthMethod   CHAP_A      CHAP_R    keys, T=1 → full feature
//! ```
//!
//! Promises
//! - No stage is left without what it demands: with mutual CHAP no operational key is sent before
//!   the target proved itself.
//! - What the target selects is checked against what was offered.
//! - A target that never finishes is cut off after a fixed number of exchanges.

use bytes::Bytes;

use crate::chap::{Challenge, Chap, ChapAlgorithm, MutualChap};
use crate::error::{Error, ProtocolError, login_status_meaning};
use crate::options::{DigestOffer, Negotiated, SessionOptions};
use crate::pdu::{Bhs, CONTINUES, FINAL, NO_TAG, Pdu, answer, request};
use crate::text::{self, Keys, TEXT_LIMIT};

/// The CmdSN that the first command after login will carry.
pub(crate) const FIRST_CMD_SN: u32 = 1;

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;
/// No honest login needs more; a target that does is broken or hostile.
const EXCHANGES_MAX: u32 = 32;

/// What the session is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    Discovery,
    Target(String),
}

/// What to do after an answer.
#[derive(Debug)]
pub(crate) enum Step {
    Send(Pdu),
    /// Close this connection and log in there (status class 1).
    Redirect(String),
    Done(Outcome),
}

/// Where the full feature phase starts from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) negotiated: Negotiated,
    pub(crate) exp_stat_sn: u32,
    pub(crate) max_cmd_sn: u32,
}

#[derive(Debug)]
enum Stage {
    Method,
    Algorithm,
    Proof {
        proof: Option<(ChapAlgorithm, Challenge)>,
    },
    Operational,
}

/// One login, from the first request to full feature.
#[derive(Debug)]
pub(crate) struct Login<'a> {
    options: &'a SessionOptions,
    purpose: Purpose,
    stage: Stage,
    /// Text gathered while the target sets the C bit.
    gathered: Vec<u8>,
    exp_stat_sn: Option<u32>,
    exchanges: u32,
    negotiated: Negotiated,
}

impl<'a> Login<'a> {
    /// The machine and its first request.
    pub(crate) fn start(
        options: &'a SessionOptions,
        purpose: Purpose,
    ) -> Result<(Self, Pdu), Error> {
        options.check()?;
        let mut keys = Keys::default();
        keys.add("InitiatorName", &options.initiator);
        match &purpose {
            Purpose::Discovery => keys.add("SessionType", "Discovery"),
            Purpose::Target(name) => keys.add("SessionType", "Normal").add("TargetName", name),
        };
        let mut login = Self {
            options,
            purpose,
            stage: Stage::Method,
            gathered: Vec::new(),
            exp_stat_sn: None,
            exchanges: 0,
            negotiated: Negotiated::default(),
        };
        let first = match &options.chap {
            Some(chap) => {
                // Who must see a proof cannot offer to go without one.
                let methods = if chap.mutual.is_some() {
                    "CHAP"
                } else {
                    "CHAP,None"
                };
                keys.add("AuthMethod", methods);
                login.request(SECURITY, None, keys.into_bytes())
            }
            None => login.operational(keys),
        };
        Ok((login, first))
    }

    /// Takes the target's answer.
    pub(crate) fn handle(&mut self, pdu: &Pdu) -> Result<Step, Error> {
        let bhs = &pdu.bhs;
        if bhs.opcode() != answer::LOGIN {
            return Err(ProtocolError::Opcode(bhs.opcode()).into());
        }
        self.exchanges += 1;
        if self.exchanges > EXCHANGES_MAX || self.gathered.len() + pdu.data.len() > TEXT_LIMIT {
            return Err(broken("no end after too many exchanges or too much text"));
        }
        self.gathered.extend_from_slice(&pdu.data);
        match (bhs.byte(36), bhs.byte(37)) {
            (0, _) => {}
            (1, _) => return self.redirect(),
            (2, 1) => return Err(Error::AuthenticationFailed),
            (class, detail) => {
                let meaning = login_status_meaning(class, detail);
                return Err(Error::LoginRefused {
                    class,
                    detail,
                    meaning,
                });
            }
        }
        // Only a successful answer's StatSN means anything (section 11.13.4).
        let stat_sn = bhs.u32(24);
        match self.exp_stat_sn {
            Some(expected) if expected != stat_sn => {
                return Err(ProtocolError::StatSn {
                    expected,
                    found: stat_sn,
                }
                .into());
            }
            Some(_) | None => self.exp_stat_sn = Some(stat_sn.wrapping_add(1)),
        }
        let flags = bhs.byte(1);
        let stage = self.stage_number();
        if flags >> 2 & 3 != stage {
            return Err(broken("the answer is in another stage than the request"));
        }
        if flags & CONTINUES != 0 {
            if flags & FINAL != 0 {
                return Err(broken("transition and continuation in one answer"));
            }
            return Ok(Step::Send(self.request(stage, None, Bytes::new())));
        }
        let next = (flags & FINAL != 0).then_some(flags & 3);
        let gathered = std::mem::take(&mut self.gathered);
        let pairs = text::pairs(&gathered)?;
        if let Some(group) = text::find(&pairs, "TargetPortalGroupTag") {
            self.negotiated.portal_group = Some(number(group)? as u16);
        }
        match &self.stage {
            Stage::Method => self.on_method(&pairs, next),
            Stage::Algorithm => self.on_challenge(&pairs, next),
            Stage::Proof { .. } => self.on_proof(&pairs, next),
            Stage::Operational => self.on_operational(&pairs, next, bhs),
        }
    }

    fn redirect(&self) -> Result<Step, Error> {
        let pairs = text::pairs(&self.gathered)?;
        let address = text::find(&pairs, "TargetAddress")
            .ok_or(broken("redirection without TargetAddress"))?;
        let address = address.split(',').next().unwrap_or(address);
        Ok(Step::Redirect(address.to_owned()))
    }

    fn on_method(&mut self, pairs: &Pairs<'_>, next: Option<u8>) -> Result<Step, Error> {
        let chap = self.chap()?;
        match text::find(pairs, "AuthMethod") {
            Some("CHAP") if next.is_none() => {
                let numbers: Vec<String> = chap
                    .algorithms
                    .iter()
                    .map(|one| one.number().to_string())
                    .collect();
                let mut keys = Keys::default();
                keys.add("CHAP_A", &numbers.join(","));
                self.stage = Stage::Algorithm;
                Ok(Step::Send(self.request(SECURITY, None, keys.into_bytes())))
            }
            Some("None") if chap.mutual.is_none() => match next {
                Some(OPERATIONAL) => Ok(self.enter_operational()),
                Some(_) => Err(broken("transition to a stage that was not asked for")),
                None => {
                    self.stage = Stage::Proof { proof: None };
                    Ok(Step::Send(self.request(
                        SECURITY,
                        Some(OPERATIONAL),
                        Bytes::new(),
                    )))
                }
            },
            Some("Reject") => Err(Error::AuthenticationFailed),
            Some(_) | None => {
                if chap.mutual.is_some() {
                    return Err(Error::TargetNotProven {
                        reason: "it did not choose CHAP",
                    });
                }
                Err(broken("AuthMethod was not one of those offered"))
            }
        }
    }

    fn on_challenge(&mut self, pairs: &Pairs<'_>, next: Option<u8>) -> Result<Step, Error> {
        let chap = self.chap()?;
        if next.is_some() {
            return Err(broken("transition before authentication"));
        }
        let chosen = text::find(pairs, "CHAP_A").ok_or(broken("CHAP_A is missing"))?;
        let algorithm = chap
            .algorithms
            .iter()
            .copied()
            .find(|one| one.number().to_string() == chosen)
            .ok_or(broken("CHAP_A was not one of those offered"))?;
        let identifier = text::find(pairs, "CHAP_I").ok_or(broken("CHAP_I is missing"))?;
        let identifier = u8::try_from(number(identifier)?)
            .map_err(|_| broken("CHAP_I does not fit one byte"))?;
        let challenge = text::find(pairs, "CHAP_C").ok_or(broken("CHAP_C is missing"))?;
        let challenge = text::decode_binary(challenge)?;
        let response = algorithm.response(identifier, &chap.secret, &challenge);
        let mut keys = Keys::default();
        keys.add("CHAP_N", &chap.user)
            .add("CHAP_R", &text::encode_binary(&response));
        let mut proof = None;
        if chap.mutual.is_some() {
            let reason = "the operating system gives no randomness for a challenge";
            let own = Challenge::random().ok_or(Error::BadOptions { reason })?;
            keys.add("CHAP_I", &own.identifier.to_string());
            keys.add("CHAP_C", &text::encode_binary(&own.bytes));
            proof = Some((algorithm, own));
        }
        self.stage = Stage::Proof { proof };
        Ok(Step::Send(self.request(
            SECURITY,
            Some(OPERATIONAL),
            keys.into_bytes(),
        )))
    }

    fn on_proof(&mut self, pairs: &Pairs<'_>, next: Option<u8>) -> Result<Step, Error> {
        let mutual = self.chap()?.mutual.as_ref();
        if let Stage::Proof {
            proof: proof @ Some(_),
        } = &mut self.stage
        {
            check_proof(mutual, proof.take(), pairs)?;
        }
        match next {
            Some(OPERATIONAL) => Ok(self.enter_operational()),
            Some(_) => Err(broken("transition to a stage that was not asked for")),
            None => Ok(Step::Send(self.request(
                SECURITY,
                Some(OPERATIONAL),
                Bytes::new(),
            ))),
        }
    }

    fn on_operational(
        &mut self,
        pairs: &Pairs<'_>,
        next: Option<u8>,
        bhs: &Bhs,
    ) -> Result<Step, Error> {
        let mut reply = Keys::default();
        for (key, value) in pairs {
            self.settle(key, value, &mut reply)?;
        }
        match next {
            Some(FULL_FEATURE) => {
                self.conclude(bhs.u16(14))?;
                Ok(Step::Done(Outcome {
                    negotiated: self.negotiated.clone(),
                    exp_stat_sn: bhs.u32(24).wrapping_add(1),
                    max_cmd_sn: bhs.u32(32),
                }))
            }
            Some(_) => Err(broken("transition to a stage that was not asked for")),
            None => {
                let text = reply.into_bytes();
                Ok(Step::Send(self.request(
                    OPERATIONAL,
                    Some(FULL_FEATURE),
                    text,
                )))
            }
        }
    }

    /// Takes over one key of the target's operational answer.
    fn settle(&mut self, key: &str, value: &str, reply: &mut Keys) -> Result<(), Error> {
        let options = self.options;
        let agreed = &mut self.negotiated;
        let at_most = |limit: u32| match number(value)? {
            selected if (1..=limit).contains(&selected) => Ok(selected),
            _ => Err(broken("a selected number exceeds the offer")),
        };
        let digest = || match value {
            "None" | "CRC32C" => Ok(value == "CRC32C"),
            _ => Err(broken("a selected digest was not offered")),
        };
        match key {
            "HeaderDigest" => agreed.header_digest = digest()?,
            "DataDigest" => agreed.data_digest = digest()?,
            "InitialR2T" => agreed.initial_r2t = boolean(value)? | options.initial_r2t,
            "ImmediateData" => agreed.immediate_data = boolean(value)? & options.immediate_data,
            "MaxRecvDataSegmentLength" => match number(value)? {
                length @ 512..=0xff_ffff => agreed.max_send_segment = length,
                _ => return Err(broken("MaxRecvDataSegmentLength is out of range")),
            },
            "MaxBurstLength" => agreed.max_burst = at_most(options.max_burst)?,
            "FirstBurstLength" => agreed.first_burst = at_most(options.first_burst)?,
            "MaxOutstandingR2T" => {
                at_most(options.max_outstanding_r2t.into())?;
            }
            "MaxConnections" => {
                at_most(1)?;
            }
            "ErrorRecoveryLevel" if value != "0" => {
                return Err(broken("ErrorRecoveryLevel above the offered 0"));
            }
            "DataPDUInOrder" | "DataSequenceInOrder" if value != "Yes" => {
                return Err(broken("out-of-order data although Yes was offered"));
            }
            // Declarations, and keys whose only possible outcome was just checked.
            "ErrorRecoveryLevel"
            | "DataPDUInOrder"
            | "DataSequenceInOrder"
            | "DefaultTime2Wait"
            | "DefaultTime2Retain"
            | "TargetPortalGroupTag"
            | "TargetAlias"
            | "TargetAddress"
            | "TargetName" => {}
            // Answers to an answer would never end.
            _ if matches!(value, "NotUnderstood" | "Reject" | "Irrelevant") => {}
            _ => {
                reply.add(key, "NotUnderstood");
            }
        }
        Ok(())
    }

    /// Applies the rules that hold between keys, once all are known.
    fn conclude(&mut self, tsih: u16) -> Result<(), Error> {
        let options = self.options;
        let agreed = &mut self.negotiated;
        let missing = |offer, selected: bool| offer == DigestOffer::Require && !selected;
        if missing(options.header_digest, agreed.header_digest)
            || missing(options.data_digest, agreed.data_digest)
        {
            return Err(broken("a required digest was not selected"));
        }
        // A key without an answer keeps its default, within what we offered.
        agreed.immediate_data &= options.immediate_data;
        agreed.max_burst = agreed.max_burst.min(options.max_burst);
        agreed.first_burst = agreed
            .first_burst
            .min(options.first_burst)
            .min(agreed.max_burst);
        agreed.tsih = tsih;
        Ok(())
    }

    fn enter_operational(&mut self) -> Step {
        Step::Send(self.operational(Keys::default()))
    }

    /// The request that offers all operational keys and asks for full feature.
    fn operational(&mut self, mut keys: Keys) -> Pdu {
        self.stage = Stage::Operational;
        let options = self.options;
        let yes_no = |value: bool| if value { "Yes" } else { "No" };
        keys.add("HeaderDigest", options.header_digest.text())
            .add("DataDigest", options.data_digest.text())
            .add(
                "MaxRecvDataSegmentLength",
                &options.max_receive_segment.to_string(),
            )
            .add("DefaultTime2Wait", "0")
            .add("DefaultTime2Retain", "0")
            .add("ErrorRecoveryLevel", "0");
        if let Purpose::Target(_) = self.purpose {
            keys.add("MaxConnections", "1")
                .add("InitialR2T", yes_no(options.initial_r2t))
                .add("ImmediateData", yes_no(options.immediate_data))
                .add("MaxBurstLength", &options.max_burst.to_string())
                .add("FirstBurstLength", &options.first_burst.to_string())
                .add(
                    "MaxOutstandingR2T",
                    &options.max_outstanding_r2t.to_string(),
                )
                .add("DataPDUInOrder", "Yes")
                .add("DataSequenceInOrder", "Yes");
        }
        self.request(OPERATIONAL, Some(FULL_FEATURE), keys.into_bytes())
    }

    fn request(&self, stage: u8, next: Option<u8>, data: Bytes) -> Pdu {
        let flags = stage << 2 | next.map_or(0, |next| FINAL | next);
        let bhs = Bhs::new(request::LOGIN | request::IMMEDIATE, flags)
            .with(8, &self.options.isid.0)
            .with_u32(16, 0)
            .with_u32(24, FIRST_CMD_SN)
            .with_u32(28, self.exp_stat_sn.unwrap_or(0));
        debug_assert_ne!(bhs.task(), NO_TAG);
        Pdu { bhs, data }
    }

    fn stage_number(&self) -> u8 {
        match self.stage {
            Stage::Method | Stage::Algorithm | Stage::Proof { .. } => SECURITY,
            Stage::Operational => OPERATIONAL,
        }
    }

    fn chap(&self) -> Result<&'a Chap, Error> {
        self.options
            .chap
            .as_ref()
            .ok_or(broken("security stage without CHAP"))
    }
}

type Pairs<'t> = [(&'t str, &'t str)];

fn check_proof(
    mutual: Option<&MutualChap>,
    proof: Option<(ChapAlgorithm, Challenge)>,
    pairs: &Pairs<'_>,
) -> Result<(), Error> {
    let (Some(mutual), Some((algorithm, challenge))) = (mutual, proof) else {
        return Ok(());
    };
    let unproven = |reason| Error::TargetNotProven { reason };
    let response = text::find(pairs, "CHAP_R").ok_or(unproven("it sent no CHAP_R"))?;
    let name = text::find(pairs, "CHAP_N").ok_or(unproven("it sent no CHAP_N"))?;
    let response = text::decode_binary(response)?;
    if !challenge.is_answered_by(&response, algorithm, &mutual.secret) {
        return Err(unproven("its CHAP_R does not match the expected secret"));
    }
    match &mutual.user {
        Some(user) if user != name => Err(unproven("its CHAP_N is not the expected name")),
        Some(_) | None => Ok(()),
    }
}

fn broken(reason: &'static str) -> Error {
    ProtocolError::Login(reason).into()
}

fn boolean(value: &str) -> Result<bool, Error> {
    match value {
        "Yes" => Ok(true),
        "No" => Ok(false),
        _ => Err(broken("a boolean key is neither Yes nor No")),
    }
}

/// A number in decimal or hexadecimal.
fn number(value: &str) -> Result<u32, Error> {
    let parsed = match value.strip_prefix("0x").or(value.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => value.parse(),
    };
    parsed.map_err(|_| broken("a numeric key is not a number"))
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
