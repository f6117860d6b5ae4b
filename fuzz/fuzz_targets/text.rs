//! Text and the values in it: what is read can be written and read again, every answer is one
//! that the standard allows, and what was agreed on stays within this target's limits.
#![no_main]

use holdfast_fuzz::memory::bounded;
use holdfast_iscsi::chap::{self, Algorithm};
use holdfast_iscsi::negotiation::{
    Negotiation, Parameters, RECEIVE_BYTES_MAX, Reply, SEND_BYTES_MAX,
};
use holdfast_iscsi::text::{self, Writer};
use libfuzzer_sys::fuzz_target;

const HELD_BYTES_MAX: usize = 256 << 10;

fuzz_target!(
    init: holdfast_fuzz::seeds::plant("text"),
    |bytes: &[u8]| bounded(HELD_BYTES_MAX + 16 * bytes.len(), || run(bytes))
);

fn run(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    let Ok(pairs) = text::parse(bytes) else {
        return;
    };
    assert!(pairs.len() <= text::PAIRS_MAX);
    let mut writer = Writer::default();
    let mut negotiation = Negotiation::new(first & 1 != 0);
    let mut answers_first_burst = false;
    for pair in &pairs {
        writer.put(&pair.key, &pair.value);
        let seen_before = negotiation.clone();
        match negotiation.offer(&pair.key, &pair.value) {
            Reply::Value(value) => {
                assert!(!value.is_empty() && value.len() < 16, "{value}");
                answers_first_burst |= pair.key == "FirstBurstLength";
            }
            Reply::Reject | Reply::Irrelevant | Reply::NotUnderstood | Reply::ProtocolError => {
                // A refused digest is the one value that a refusal may change: to none.
                let (before, after) = (seen_before.parameters(), negotiation.parameters());
                assert_eq!(before.max_burst_bytes, after.max_burst_bytes);
                assert_eq!(before.first_burst_bytes, after.first_burst_bytes);
                assert_eq!(before.send_bytes_max, after.send_bytes_max);
            }
            Reply::Silent => {}
        }
        if let Some(binary) = chap::decode_binary(&pair.value) {
            assert!((1..=chap::BINARY_BYTES_MAX).contains(&binary.len()));
            let again = chap::decode_binary(&chap::encode_binary(&binary));
            assert_eq!(again.as_ref(), Some(&binary));
        }
        let _ = Algorithm::first_of(&pair.value);
        let _ = text::parse_number(&pair.value);
    }
    let again = text::parse(&writer.finish());
    assert_eq!(again.as_ref(), Ok(&pairs));
    let agreed = negotiation.parameters();
    assert!((512..=SEND_BYTES_MAX).contains(&agreed.send_bytes_max));
    assert!(agreed.first_burst_bytes <= RECEIVE_BYTES_MAX);
    // Who never agreed on a first burst may use the default, however short the burst.
    let longest = if answers_first_burst {
        agreed.max_burst_bytes
    } else {
        agreed.max_burst_bytes.max(Parameters::default().first_burst_bytes)
    };
    assert!(agreed.first_burst_bytes <= longest);
    assert!(agreed.max_burst_bytes >= 512);
}
