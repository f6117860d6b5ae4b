//! What an initiator's PDUs prove of the moment at which it still held on to the session.
//!
//! A PDU that arrives proves nothing by itself: it may have been on its way, or in the socket of
//! a process that stood still, for long. But an initiator that acknowledges a status number
//! (ExpStatSN, RFC 7143 11.3.5), or answers a transfer tag (a Data-Out to an R2T, a NOP-Out to
//! a NOP-In), has received what carried the number. So it was there when that was sent. Ordinary
//! traffic proves this all the time; only after a pause does the target have to ask.

use std::collections::VecDeque;
use std::time::Duration;

use super::serial_before;
use crate::pdu::{InitiatorOpcode, Pdu, RESERVED_TAG, TargetOpcode};

/// Numbers issued within this time share a mark.
const MARK_EVERY: Duration = Duration::from_millis(20);
/// Marks kept; beyond, the oldest is forgotten, which only loses evidence.
const MARKS_MAX: usize = 64;

/// When numbers of a rising series were issued, coarsely.
#[derive(Debug, Default)]
struct Marks(VecDeque<(u32, Duration)>);

impl Marks {
    /// `number`, the next of its series, is issued now.
    fn issue(&mut self, number: u32, now: Duration) {
        if let Some((_, last)) = self.0.back()
            && now.saturating_sub(*last) < MARK_EVERY
        {
            return;
        }
        self.mark(number, now);
    }

    /// The same, with a mark of its own: somebody waits for this very number to be answered.
    fn mark(&mut self, number: u32, now: Duration) {
        if self.0.len() == MARKS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((number, now));
    }

    /// The initiator has received `number`. Answers a time no later than that of its issue.
    fn answered(&mut self, number: u32) -> Option<Duration> {
        let mut issued = None;
        while let Some((first, at)) = self.0.front().copied()
            && !serial_before(number, first)
        {
            issued = Some(at);
            self.0.pop_front();
        }
        // Later numbers of the same mark may be answered yet; they prove no more than this one.
        issued
    }
}

/// See the module's header.
#[derive(Debug, Default)]
pub struct Evidence {
    statuses: Marks,
    tags: Marks,
    last_status: Option<u32>,
}

impl Evidence {
    /// A PDU is about to be sent.
    pub fn sent(&mut self, pdu: &Pdu, now: Duration) {
        let Some(opcode) = TargetOpcode::from_code(pdu.opcode()) else {
            return;
        };
        let own_tag = pdu.u32_at(20);
        let takes_status = match opcode {
            TargetOpcode::ReadyToTransfer => {
                self.tags.issue(own_tag, now);
                false
            }
            TargetOpcode::NopIn => {
                if own_tag != RESERVED_TAG {
                    self.tags.mark(own_tag, now);
                }
                pdu.task_tag() != RESERVED_TAG
            }
            TargetOpcode::DataIn => pdu.flag(0x01),
            TargetOpcode::ScsiResponse
            | TargetOpcode::TaskManagement
            | TargetOpcode::Login
            | TargetOpcode::Text
            | TargetOpcode::Logout
            | TargetOpcode::AsyncMessage
            | TargetOpcode::Reject => true,
        };
        if takes_status {
            let number = pdu.u32_at(24);
            self.last_status = Some(number);
            self.statuses.issue(number, now);
        }
    }

    /// A PDU has been received. Answers the latest moment that it proves the initiator to have
    /// held on to the session at, if it is news.
    pub fn received(&mut self, pdu: &Pdu) -> Option<Duration> {
        let opcode = InitiatorOpcode::from_code(pdu.opcode())?;
        let by_tag = match opcode {
            InitiatorOpcode::DataOut | InitiatorOpcode::NopOut => {
                let tag = pdu.u32_at(20);
                (tag != RESERVED_TAG)
                    .then(|| self.tags.answered(tag))
                    .flatten()
            }
            InitiatorOpcode::ScsiCommand
            | InitiatorOpcode::TaskManagement
            | InitiatorOpcode::Login
            | InitiatorOpcode::Text
            | InitiatorOpcode::Logout
            | InitiatorOpcode::Snack => None,
        };
        let acknowledged = pdu.u32_at(28).wrapping_sub(1);
        // More than was issued cannot be acknowledged.
        let is_issued = (self.last_status).is_some_and(|last| !serial_before(last, acknowledged));
        let by_status = is_issued
            .then(|| self.statuses.answered(acknowledged))
            .flatten();
        by_tag.max(by_status)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::pdu::build;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn status(number: u32) -> Pdu {
        let mut pdu = build::logout_response(7, 0);
        build::stamp(&mut pdu, number, 0, 0);
        pdu
    }

    fn ping(tag: u32) -> Pdu {
        build::nop_in(0, RESERVED_TAG, tag, Bytes::new())
    }

    fn received(evidence: &mut Evidence, opcode: u8, tag: u32, expected: u32) -> Option<Duration> {
        let mut pdu = Pdu::new(opcode);
        pdu.put_u32(20, tag);
        pdu.put_u32(28, expected);
        evidence.received(&pdu)
    }

    const COMMAND: u8 = 0x01;
    const NOP_OUT: u8 = 0x00;

    #[test]
    fn an_acknowledged_status_proves_the_time_at_which_it_was_sent() {
        let mut evidence = Evidence::default();
        evidence.sent(&status(5), ms(100));
        evidence.sent(&status(6), ms(200));
        assert_eq!(
            received(&mut evidence, COMMAND, 0, 5),
            None,
            "5 is awaited yet"
        );
        assert_eq!(received(&mut evidence, COMMAND, 0, 6), Some(ms(100)));
        assert_eq!(received(&mut evidence, COMMAND, 0, 6), None, "no news");
        assert_eq!(received(&mut evidence, COMMAND, 0, 7), Some(ms(200)));
    }

    #[test]
    fn a_status_that_was_never_sent_proves_nothing() {
        let mut evidence = Evidence::default();
        evidence.sent(&status(5), ms(100));
        assert_eq!(received(&mut evidence, COMMAND, 0, 9), None);
    }

    #[test]
    fn a_status_that_shares_a_mark_proves_the_time_of_the_mark() {
        let mut evidence = Evidence::default();
        evidence.sent(&status(5), ms(100));
        evidence.sent(&status(6), ms(110));
        assert_eq!(received(&mut evidence, COMMAND, 0, 7), Some(ms(100)));
    }

    #[test]
    fn an_answered_ping_proves_its_time_and_a_ping_of_the_initiator_nothing() {
        let mut evidence = Evidence::default();
        evidence.sent(&ping(3), ms(100));
        assert_eq!(received(&mut evidence, NOP_OUT, RESERVED_TAG, 0), None);
        assert_eq!(received(&mut evidence, NOP_OUT, 3, 0), Some(ms(100)));
    }

    #[test]
    fn a_ping_right_after_a_transfer_tag_proves_its_own_time() {
        let mut evidence = Evidence::default();
        evidence.sent(&build::ready_to_transfer(0, 7, 3, 0, 0, 512), ms(100));
        evidence.sent(&ping(4), ms(104));
        assert_eq!(received(&mut evidence, NOP_OUT, 4, 0), Some(ms(104)));
    }

    #[test]
    fn numbers_wrap_around() {
        let mut evidence = Evidence::default();
        evidence.sent(&status(u32::MAX), ms(100));
        evidence.sent(&status(0), ms(200));
        assert_eq!(received(&mut evidence, COMMAND, 0, 0), Some(ms(100)));
        assert_eq!(received(&mut evidence, COMMAND, 0, 1), Some(ms(200)));
    }

    #[test]
    fn more_marks_than_are_kept_lose_the_oldest_only() {
        let mut evidence = Evidence::default();
        for number in 0..100 {
            evidence.sent(&status(number), ms(u64::from(number) * 50));
        }
        assert_eq!(received(&mut evidence, COMMAND, 0, 10), None);
        assert_eq!(received(&mut evidence, COMMAND, 0, 100), Some(ms(99 * 50)));
    }
}
