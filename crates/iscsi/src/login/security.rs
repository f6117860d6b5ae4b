//! The security stage: AuthMethod and CHAP (RFC 7143 12.1).

use bytes::Bytes;

use super::{
    Challenge, Exchange, Login, LoginStatus, OperationalStage, Policy, Request, Stage, Step, take,
};
use crate::chap::{self, Algorithm};
use crate::negotiation::{self, Negotiation, Reply};
use crate::targets::TargetAuth;
use crate::text::{Pair, Writer, parse_number};

/// A login in the security stage.
pub struct SecurityStage {
    exchange: Exchange,
    auth: TargetAuth,
    progress: Progress,
}

/// How far authentication has come.
enum Progress {
    /// No method has been chosen.
    Open,
    /// CHAP was chosen; the initiator has yet to list algorithms.
    Chosen,
    /// The challenge is on its way.
    Challenged(Algorithm, Challenge),
    /// Nothing more is needed.
    Done,
}

impl SecurityStage {
    pub(super) fn new(exchange: Exchange, auth: TargetAuth) -> Self {
        let progress = match auth {
            TargetAuth::None | TargetAuth::Optional(_) => Progress::Done,
            TargetAuth::Chap(_) => Progress::Open,
        };
        Self {
            exchange,
            auth,
            progress,
        }
    }

    pub(super) fn refuse(mut self, status: LoginStatus) -> Step {
        self.exchange.refuse(Stage::Security, status)
    }

    pub(super) fn handle(mut self, request: &Request, policy: &dyn Policy) -> Step {
        if !self.exchange.belongs(request) || request.current != Stage::Security {
            return self.refuse(LoginStatus::InitiatorError);
        }
        match self.exchange.collect(request) {
            Ok(Some(pairs)) => self.negotiate(pairs, request, policy),
            Ok(None) => self.reply(None, Bytes::new()),
            Err(status) => self.refuse(status),
        }
    }

    pub(super) fn negotiate(
        mut self,
        mut pairs: Vec<Pair>,
        request: &Request,
        policy: &dyn Policy,
    ) -> Step {
        let mut writer = Writer::default();
        self.exchange.announce(&mut writer);
        let outcome = self
            .authenticate(&mut pairs, request, policy, &mut writer)
            .and_then(|()| self.negotiate_rest(pairs, &mut writer));
        if let Err(status) = outcome {
            return self.refuse(status);
        }
        let text = writer.finish();
        match (&self.progress, request.transit) {
            (Progress::Done, Some(Stage::FullFeature)) => {
                self.exchange.establish(Stage::Security, text)
            }
            (Progress::Done, Some(next @ (Stage::Operational | Stage::Security))) => {
                let response = self.exchange.response(Stage::Security, Some(next), text);
                let login = Login::Operational(OperationalStage::new(self.exchange));
                Step::Reply(Box::new(login), response)
            }
            (Progress::Done, None)
            | (Progress::Open | Progress::Chosen | Progress::Challenged(..), _) => {
                self.reply(None, text)
            }
        }
    }

    fn reply(mut self, transit: Option<Stage>, text: Bytes) -> Step {
        let response = self.exchange.response(Stage::Security, transit, text);
        Step::Reply(Box::new(Login::Security(self)), response)
    }

    fn authenticate(
        &mut self,
        pairs: &mut Vec<Pair>,
        request: &Request,
        policy: &dyn Policy,
        writer: &mut Writer,
    ) -> Result<(), LoginStatus> {
        if let Some(methods) = take(pairs, "AuthMethod")? {
            return self.choose_method(&methods, writer);
        }
        match &self.progress {
            // Without a method there is nothing to go on with.
            Progress::Open if request.transit.is_some() => Err(LoginStatus::AuthenticationFailed),
            Progress::Open | Progress::Done => Ok(()),
            Progress::Chosen => {
                let offered = take(pairs, "CHAP_A")?.ok_or(LoginStatus::AuthenticationFailed)?;
                let algorithm =
                    Algorithm::first_of(&offered).ok_or(LoginStatus::AuthenticationFailed)?;
                let challenge = policy.issue_challenge(algorithm);
                writer.put("CHAP_A", &(algorithm as u8).to_string());
                writer.put("CHAP_I", &challenge.identifier.to_string());
                writer.put("CHAP_C", &chap::encode_binary(&challenge.bytes));
                self.progress = Progress::Challenged(algorithm, challenge);
                Ok(())
            }
            Progress::Challenged(algorithm, challenge) => {
                let number = self.verify(*algorithm, challenge, pairs, policy, writer)?;
                self.exchange.credential = Some(number);
                self.progress = Progress::Done;
                Ok(())
            }
        }
    }

    fn choose_method(&mut self, methods: &str, writer: &mut Writer) -> Result<(), LoginStatus> {
        let offers = |wanted: &str| methods.split(',').any(|method| method == wanted);
        match (&self.auth, &self.progress) {
            (TargetAuth::Optional(known), Progress::Done)
                if offers("CHAP") && !known.is_empty() =>
            {
                writer.put("AuthMethod", "CHAP");
                self.progress = Progress::Chosen;
                Ok(())
            }
            (TargetAuth::None | TargetAuth::Optional(_), Progress::Done) if offers("None") => {
                writer.put("AuthMethod", "None");
                Ok(())
            }
            (TargetAuth::Chap(_), Progress::Open) if offers("CHAP") => {
                writer.put("AuthMethod", "CHAP");
                self.progress = Progress::Chosen;
                Ok(())
            }
            (_, Progress::Open | Progress::Done) => Err(LoginStatus::AuthenticationFailed),
            (_, Progress::Chosen | Progress::Challenged(..)) => Err(LoginStatus::InitiatorError),
        }
    }

    /// Checks the initiator's response, then answers its challenge if it sent one.
    ///
    /// Answers the number of the credentials that held. Every failure looks the same: it does not
    /// tell whether the name or the secret was wrong.
    fn verify(
        &self,
        algorithm: Algorithm,
        challenge: &Challenge,
        pairs: &mut Vec<Pair>,
        policy: &dyn Policy,
        writer: &mut Writer,
    ) -> Result<u64, LoginStatus> {
        let (known, required) = match &self.auth {
            TargetAuth::None => return Err(LoginStatus::InitiatorError),
            TargetAuth::Chap(known) => (known.as_slice(), true),
            TargetAuth::Optional(known) => (known.as_slice(), false),
        };
        let failed = LoginStatus::AuthenticationFailed;
        let name = take(pairs, "CHAP_N")?.ok_or(failed.clone())?;
        let response = take(pairs, "CHAP_R")?.ok_or(failed.clone())?;
        let response = chap::decode_binary(&response).ok_or(failed.clone())?;
        // All are evaluated, name and secret, before any is looked at.
        let mut proven = None;
        for credentials in known {
            let named = chap::equal_text(&name, &credentials.username);
            let (identifier, secret) = (challenge.identifier, &credentials.secret);
            let holds = algorithm.verify(identifier, secret, &challenge.bytes, &response);
            if named & holds {
                proven = Some((credentials.mutual.as_ref(), credentials.number));
            }
        }
        let (mutual, number) = proven.ok_or(failed.clone())?;
        let theirs = match (take(pairs, "CHAP_I")?, take(pairs, "CHAP_C")?) {
            (None, None) => None,
            (Some(identifier), Some(bytes)) => {
                let identifier = parse_number(&identifier).and_then(|id| u8::try_from(id).ok());
                let bytes = chap::decode_binary(&bytes);
                Some(identifier.zip(bytes).ok_or(failed.clone())?)
            }
            (Some(_), None) | (None, Some(_)) => return Err(failed),
        };
        match (mutual, theirs) {
            (None, None) => Ok(number),
            (Some(_), None) if !required => Ok(number),
            // Reflection: our own challenge must not be answered for the one we challenged.
            (Some(_), Some((_, bytes)))
                if bytes == challenge.bytes || policy.is_outstanding(&bytes) =>
            {
                Err(failed)
            }
            (Some((own_name, own_secret)), Some((identifier, bytes))) => {
                writer.put("CHAP_N", own_name);
                let answer = algorithm.response(identifier, own_secret, &bytes);
                writer.put("CHAP_R", &chap::encode_binary(&answer));
                Ok(number)
            }
            (Some(_), None) | (None, Some(_)) => Err(failed),
        }
    }

    /// Keys that have nothing to do with authentication.
    fn negotiate_rest(&mut self, pairs: Vec<Pair>, writer: &mut Writer) -> Result<(), LoginStatus> {
        for Pair { key, value } in pairs {
            let reply = if negotiation::allowed_in_security_stage(&key) {
                self.exchange.negotiation.offer(&key, &value)
            } else if key.starts_with("CHAP_") || negotiation::is_declaration_of_names(&key) {
                Reply::ProtocolError
            } else {
                // An operational key does not belong here; an unknown one is not understood.
                match Negotiation::new(false).offer(&key, &value) {
                    Reply::NotUnderstood => Reply::NotUnderstood,
                    Reply::Silent
                    | Reply::Value(_)
                    | Reply::Reject
                    | Reply::Irrelevant
                    | Reply::ProtocolError => Reply::ProtocolError,
                }
            };
            super::operational::put_reply(writer, &key, reply)?;
        }
        Ok(())
    }
}
