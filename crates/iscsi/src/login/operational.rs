//! The operational stage: negotiation of keys (RFC 7143 6.3.3).

use bytes::Bytes;

use super::{Exchange, Login, LoginStatus, Request, Stage, Step};
use crate::negotiation::{self, Negotiation, RECEIVE_BYTES_MAX, Reply};
use crate::text::{Pair, Writer};

/// A login in the operational stage.
pub struct OperationalStage {
    exchange: Exchange,
    declared: bool,
}

impl OperationalStage {
    pub(super) fn new(exchange: Exchange) -> Self {
        Self {
            exchange,
            declared: false,
        }
    }

    pub(super) fn refuse(mut self, status: LoginStatus) -> Step {
        self.exchange.refuse(Stage::Operational, status)
    }

    pub(super) fn handle(mut self, request: &Request) -> Step {
        if !self.exchange.belongs(request) || request.current != Stage::Operational {
            return self.refuse(LoginStatus::InitiatorError);
        }
        match self.exchange.collect(request) {
            Ok(Some(pairs)) => self.negotiate(pairs, request),
            Ok(None) => self.reply(Bytes::new()),
            Err(status) => self.refuse(status),
        }
    }

    pub(super) fn negotiate(mut self, mut pairs: Vec<Pair>, request: &Request) -> Step {
        let mut writer = Writer::default();
        self.exchange.announce(&mut writer);
        Negotiation::sort(&mut pairs);
        for Pair { key, value } in pairs {
            let forbidden = negotiation::is_declaration_of_names(&key)
                || key == "AuthMethod"
                || key.starts_with("CHAP_");
            let reply = if forbidden {
                Reply::ProtocolError
            } else {
                self.exchange.negotiation.offer(&key, &value)
            };
            if let Err(status) = put_reply(&mut writer, &key, reply) {
                return self.refuse(status);
            }
        }
        if !std::mem::replace(&mut self.declared, true) {
            writer.put("MaxRecvDataSegmentLength", &RECEIVE_BYTES_MAX.to_string());
        }
        let text = writer.finish();
        match request.transit {
            Some(_) => self.exchange.establish(Stage::Operational, text),
            None => self.reply(text),
        }
    }

    fn reply(mut self, text: Bytes) -> Step {
        let response = self.exchange.response(Stage::Operational, None, text);
        Step::Reply(Box::new(Login::Operational(self)), response)
    }
}

/// Writes the answer to an offered key.
pub(super) fn put_reply(writer: &mut Writer, key: &str, reply: Reply) -> Result<(), LoginStatus> {
    match reply {
        Reply::Silent => {}
        Reply::Value(value) => writer.put(key, &value),
        Reply::Reject => writer.put(key, "Reject"),
        Reply::Irrelevant => writer.put(key, "Irrelevant"),
        Reply::NotUnderstood => writer.put(key, "NotUnderstood"),
        Reply::ProtocolError => return Err(LoginStatus::InitiatorError),
    }
    Ok(())
}
