//! Logins of any shape. Where CHAP is required nobody gets in without having computed with the
//! secret, the target's own challenge is never answered, and every response keeps its form.
#![no_main]

use bytes::Bytes;
use holdfast_fuzz::chap::{SECRET, TARGET, TestPolicy, USER};
use holdfast_fuzz::input::Input;
use holdfast_fuzz::memory::bounded;
use holdfast_iscsi::chap::{self, Algorithm};
use holdfast_iscsi::login::{Login, Step};
use holdfast_iscsi::pdu::Pdu;
use holdfast_iscsi::text::{self, Writer};
use libfuzzer_sys::fuzz_target;

const HELD_BYTES_MAX: usize = 512 << 10;
/// Every pair of the longest list answered NotUnderstood, and what the target adds itself.
const ANSWER_BYTES_MAX: usize = text::PAIRS_MAX * (text::KEY_BYTES_MAX + 15) + 1024;

fuzz_target!(
    init: holdfast_fuzz::seeds::plant("login"),
    |bytes: &[u8]| bounded(HELD_BYTES_MAX + 8 * bytes.len(), || run(bytes))
);

/// What the last response asked for.
#[derive(Default)]
struct Asked {
    algorithm: Option<Algorithm>,
    identifier: u8,
    challenge: Vec<u8>,
}

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let policy = TestPolicy::new(input.byte());
    let mut login = Login::default();
    let mut asked = Asked::default();
    let (mut proven, mut reflected) = (false, false);
    let mut status_number = None;
    while !input.is_empty() {
        let mut pdu = Pdu::new(0x43);
        pdu.header[1] = input.byte();
        let how = input.byte();
        let mut writer = Writer::default();
        if how & 1 != 0 {
            writer.put("InitiatorName", "iqn.2026-01.i:a");
            match how >> 1 & 3 {
                0 => writer.put("SessionType", "Discovery"),
                1 => writer.put("TargetName", TARGET),
                _ => {}
            }
        }
        if how & 0x08 != 0 {
            writer.put("AuthMethod", "CHAP,None");
        }
        if how & 0x10 != 0 {
            writer.put("CHAP_A", "8,7,6,5");
        }
        if how & 0x20 != 0
            && let Some(algorithm) = asked.algorithm
        {
            let secret = SECRET.into();
            let response = algorithm.response(asked.identifier, &secret, &asked.challenge);
            writer.put("CHAP_N", USER);
            writer.put("CHAP_R", &chap::encode_binary(&response));
            proven = true;
        }
        if how & 0x40 != 0 {
            // Reflection: the target is to answer what it asked.
            writer.put("CHAP_I", &asked.identifier.to_string());
            writer.put("CHAP_C", &chap::encode_binary(&asked.challenge));
            reflected |= !asked.challenge.is_empty();
        }
        let mut data = writer.finish().to_vec();
        let more = usize::from(input.word()) & 0x1fff;
        data.extend_from_slice(input.bytes(more));
        pdu.data = Bytes::from(data);
        if how & 0x80 != 0 {
            // Any field but the lengths, which framing sets.
            let at = 8 + usize::from(input.byte()) % 40;
            pdu.header[at] = input.byte();
            pdu.header[0] = input.byte();
            pdu.header[3] = input.byte() & 1;
        }
        let response = match login.handle(&pdu, &policy) {
            Step::Reply(next, response) => {
                login = *next;
                assert_eq!(response.header[36..38], [0, 0]);
                judge(&response, &mut status_number);
                listen(&response, &mut asked, reflected);
                continue;
            }
            Step::Established(session) => {
                assert!(proven || !policy.requires_proof(), "in without a proof");
                let response = session.response(1, 1);
                judge(&response, &mut status_number);
                listen(&response, &mut asked, reflected);
                return;
            }
            Step::Refused(response, status) => {
                assert_eq!(response.header[36..38], status.code());
                assert_ne!(response.header[36], 0);
                response
            }
            Step::Close => return,
        };
        judge(&response, &mut status_number);
        return;
    }
}

fn judge(response: &Pdu, status_number: &mut Option<u32>) {
    assert_eq!(response.header[0], 0x23);
    assert!(response.additional.is_empty());
    assert!(response.data.len() <= ANSWER_BYTES_MAX);
    assert!(text::parse(&response.data).is_ok());
    let number = response.u32_at(24);
    if let Some(last) = status_number.replace(number) {
        assert_eq!(number, last.wrapping_add(1), "StatSN");
    }
    // T and C never together; the next stage lies ahead.
    let flags = response.header[1];
    assert_eq!(flags & 0x40, 0);
    assert!(flags & 0x80 == 0 || flags & 3 > flags >> 2 & 3);
}

fn listen(response: &Pdu, asked: &mut Asked, reflected: bool) {
    for pair in text::parse(&response.data).unwrap_or_default() {
        match pair.key.as_str() {
            "CHAP_A" => asked.algorithm = Algorithm::first_of(&pair.value),
            "CHAP_I" => asked.identifier = pair.value.parse().unwrap_or(0),
            "CHAP_C" => asked.challenge = chap::decode_binary(&pair.value).unwrap_or_default(),
            "CHAP_R" => assert!(!reflected, "answered its own challenge"),
            _ => {}
        }
    }
}
