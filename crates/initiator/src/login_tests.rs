//! The login machine against scripted targets.

use super::*;
use crate::chap::Secret;
use crate::options::DigestOffer;

const TARGET: &str = "iqn.2026-11.test:disk";

fn reply(stage: u8, next: Option<u8>, stat_sn: u32, keys: &[(&str, &str)]) -> Pdu {
    let mut text = Keys::default();
    for (key, value) in keys {
        text.add(key, value);
    }
    let flags = stage << 2 | next.map_or(0, |next| FINAL | next);
    let bhs = Bhs::new(answer::LOGIN, flags)
        .with(14, &[0, 9])
        .with_u32(24, stat_sn)
        .with_u32(28, FIRST_CMD_SN)
        .with_u32(32, 64);
    Pdu {
        bhs,
        data: text.into_bytes(),
    }
}

fn status(class: u8, detail: u8, keys: &[(&str, &str)]) -> Pdu {
    let pdu = reply(OPERATIONAL, None, 0, keys);
    Pdu {
        bhs: pdu.bhs.with(36, &[class, detail]),
        data: pdu.data,
    }
}

fn start(options: &SessionOptions) -> (Login<'_>, Pdu) {
    Login::start(options, Purpose::Target(TARGET.to_owned())).unwrap()
}

fn sent(step: Result<Step, Error>) -> Pdu {
    match step.unwrap() {
        Step::Send(pdu) => pdu,
        other => panic!("expected a request, got {other:?}"),
    }
}

fn done(step: Result<Step, Error>) -> Outcome {
    match step.unwrap() {
        Step::Done(outcome) => outcome,
        other => panic!("expected the end of login, got {other:?}"),
    }
}

fn value(pdu: &Pdu, key: &str) -> Option<String> {
    text::find(&text::pairs(&pdu.data).unwrap(), key).map(str::to_owned)
}

fn mutual_options() -> SessionOptions {
    let chap = Chap::new("user", Secret::new("initiator-secret"))
        .with_mutual(Some("target".to_owned()), Secret::new("target-secret"));
    SessionOptions {
        chap: Some(chap),
        ..SessionOptions::new("iqn.test:host")
    }
}

const CHALLENGE: [(&str, &str); 3] = [("CHAP_A", "5"), ("CHAP_I", "39"), ("CHAP_C", "0x0102")];

/// Drives a mutual login up to the point where the target owes its proof.
fn until_proof<'a>(options: &'a SessionOptions) -> (Login<'a>, Pdu) {
    let (mut login, _) = start(options);
    sent(login.handle(&reply(SECURITY, None, 0, &[("AuthMethod", "CHAP")])));
    let proof = sent(login.handle(&reply(SECURITY, None, 1, &CHALLENGE)));
    (login, proof)
}

#[test]
fn login_without_chap_takes_one_exchange() {
    let options = SessionOptions::new("iqn.test:host");
    let (mut login, first) = start(&options);
    assert_eq!(
        value(&first, "InitiatorName").as_deref(),
        Some("iqn.test:host")
    );
    assert_eq!(value(&first, "TargetName").as_deref(), Some(TARGET));
    assert_eq!(first.bhs.byte(1), FINAL | OPERATIONAL << 2 | FULL_FEATURE);
    let answer = [
        ("TargetPortalGroupTag", "3"),
        ("MaxRecvDataSegmentLength", "65536"),
        ("InitialR2T", "No"),
        ("ImmediateData", "No"),
        ("MaxBurstLength", "131072"),
        ("FirstBurstLength", "262144"),
        ("HeaderDigest", "None"),
    ];
    let outcome = done(login.handle(&reply(OPERATIONAL, Some(FULL_FEATURE), 77, &answer)));
    let negotiated = Negotiated {
        initial_r2t: false,
        immediate_data: false,
        max_send_segment: 65536,
        max_burst: 131_072,
        first_burst: 131_072,
        portal_group: Some(3),
        tsih: 9,
        ..Negotiated::default()
    };
    assert_eq!(
        outcome,
        Outcome {
            negotiated,
            exp_stat_sn: 78,
            max_cmd_sn: 64
        }
    );
}

#[test]
fn text_split_over_continued_answers_is_joined() {
    let options = SessionOptions::new("iqn.test:host");
    let (mut login, _) = start(&options);
    let mut part = reply(OPERATIONAL, None, 5, &[]);
    part.bhs = part.bhs.with(1, &[CONTINUES | OPERATIONAL << 2]);
    part.data = Bytes::from_static(b"MaxBurst");
    let ack = sent(login.handle(&part));
    assert_eq!((ack.bhs.byte(1), ack.data.len()), (OPERATIONAL << 2, 0));
    let mut rest = reply(OPERATIONAL, Some(FULL_FEATURE), 6, &[]);
    rest.data = Bytes::from_static(b"Length=4096\0");
    assert_eq!(done(login.handle(&rest)).negotiated.max_burst, 4096);
}

#[test]
fn chap_answers_the_challenge_with_the_published_response() {
    let chap = Chap::new("user", Secret::new("secretsecret1234"));
    let options = SessionOptions {
        chap: Some(chap),
        ..SessionOptions::new("iqn.test:host")
    };
    let (mut login, first) = start(&options);
    assert_eq!(value(&first, "AuthMethod").as_deref(), Some("CHAP,None"));
    let offer = sent(login.handle(&reply(SECURITY, None, 0, &[("AuthMethod", "CHAP")])));
    assert_eq!(value(&offer, "CHAP_A").as_deref(), Some("5"));
    let challenge = [
        ("CHAP_A", "5"),
        ("CHAP_I", "0x27"),
        ("CHAP_C", "0x000102030405060708090a0b0c0d0e0f"),
    ];
    let proof = sent(login.handle(&reply(SECURITY, None, 1, &challenge)));
    assert_eq!(value(&proof, "CHAP_N").as_deref(), Some("user"));
    let expected = "0x296f112870ee0e26e662ee3036d60bac";
    assert_eq!(value(&proof, "CHAP_R").as_deref(), Some(expected));
    assert_eq!(value(&proof, "CHAP_C"), None);
    let operational = sent(login.handle(&reply(SECURITY, Some(OPERATIONAL), 2, &[])));
    assert_eq!(value(&operational, "InitialR2T").as_deref(), Some("No"));
    assert_eq!(operational.bhs.u32(28), 3, "ExpStatSN follows the answers");
    done(login.handle(&reply(OPERATIONAL, Some(FULL_FEATURE), 3, &[])));
}

#[test]
fn a_target_with_the_right_secret_and_name_proves_itself() {
    let options = mutual_options();
    let (mut login, proof) = until_proof(&options);
    let identifier = value(&proof, "CHAP_I").unwrap().parse().unwrap();
    let challenge = text::decode_binary(&value(&proof, "CHAP_C").unwrap()).unwrap();
    let secret = Secret::new("target-secret");
    let response =
        text::encode_binary(&ChapAlgorithm::Md5.response(identifier, &secret, &challenge));
    let keys = [("CHAP_N", "target"), ("CHAP_R", response.as_str())];
    sent(login.handle(&reply(SECURITY, Some(OPERATIONAL), 2, &keys)));
}

#[test]
fn a_target_without_a_valid_proof_never_sees_an_operational_key() {
    let options = mutual_options();
    let wrong = text::encode_binary(&[7; 16]);
    let wrong_keys = [("CHAP_N", "target"), ("CHAP_R", wrong.as_str())];
    for keys in [&wrong_keys[..], &wrong_keys[..1], &wrong_keys[1..], &[]] {
        let (mut login, _) = until_proof(&options);
        let step = login.handle(&reply(SECURITY, Some(OPERATIONAL), 2, keys));
        assert!(
            matches!(step, Err(Error::TargetNotProven { .. })),
            "{keys:?} gave {step:?}"
        );
    }
    let (mut login, first) = start(&options);
    assert_eq!(value(&first, "AuthMethod").as_deref(), Some("CHAP"));
    let step = login.handle(&reply(
        SECURITY,
        Some(OPERATIONAL),
        0,
        &[("AuthMethod", "None")],
    ));
    assert!(
        matches!(step, Err(Error::TargetNotProven { .. })),
        "{step:?}"
    );
}

#[test]
fn an_authentication_is_not_skipped_by_an_early_transition() {
    let options = mutual_options();
    let (mut login, _) = start(&options);
    sent(login.handle(&reply(SECURITY, None, 0, &[("AuthMethod", "CHAP")])));
    let step = login.handle(&reply(SECURITY, Some(OPERATIONAL), 1, &CHALLENGE));
    assert!(matches!(step, Err(Error::Protocol(_))), "{step:?}");
}

#[test]
fn refusals_are_typed_by_class_and_detail() {
    let options = SessionOptions::new("iqn.test:host");
    let refused = |class, detail| start(&options).0.handle(&status(class, detail, &[]));
    assert_eq!(refused(2, 1).unwrap_err(), Error::AuthenticationFailed);
    let not_found = Error::LoginRefused {
        class: 2,
        detail: 3,
        meaning: "target not found",
    };
    assert_eq!(refused(2, 3).unwrap_err(), not_found);
    let busy = Error::LoginRefused {
        class: 3,
        detail: 1,
        meaning: "service unavailable",
    };
    assert_eq!(refused(3, 1).unwrap_err(), busy);
}

#[test]
fn a_redirection_names_the_address_without_its_portal_group() {
    let options = SessionOptions::new("iqn.test:host");
    let (mut login, _) = start(&options);
    let step = login.handle(&status(1, 1, &[("TargetAddress", "[::1]:3260,7")]));
    assert!(matches!(step, Ok(Step::Redirect(address)) if address == "[::1]:3260"));
}

#[test]
fn selections_beyond_the_offer_are_a_broken_protocol() {
    let options = SessionOptions {
        header_digest: DigestOffer::Require,
        ..SessionOptions::new("iqn.test:host")
    };
    for key in [
        ("MaxBurstLength", "16776192"),
        ("FirstBurstLength", "0"),
        ("HeaderDigest", "None"),
        ("DataDigest", "MD5"),
        ("ErrorRecoveryLevel", "2"),
        ("MaxRecvDataSegmentLength", "100"),
        ("InitialR2T", "maybe"),
    ] {
        let (mut login, _) = start(&options);
        let step = login.handle(&reply(OPERATIONAL, Some(FULL_FEATURE), 0, &[key]));
        assert!(
            matches!(step, Err(Error::Protocol(_))),
            "{key:?} gave {step:?}"
        );
    }
}

#[test]
fn unknown_offers_are_answered_not_understood() {
    let options = SessionOptions::new("iqn.test:host");
    let (mut login, _) = start(&options);
    let next = sent(login.handle(&reply(OPERATIONAL, None, 0, &[("X-test", "1")])));
    assert_eq!(value(&next, "X-test").as_deref(), Some("NotUnderstood"));
}

#[test]
fn a_login_without_end_is_cut_off() {
    let options = SessionOptions::new("iqn.test:host");
    let (mut login, _) = start(&options);
    let error = (0..1000)
        .find_map(|stat_sn| login.handle(&reply(OPERATIONAL, None, stat_sn, &[])).err())
        .unwrap();
    assert!(matches!(error, Error::Protocol(ProtocolError::Login(_))));
}

#[test]
fn a_skipped_status_number_is_a_broken_protocol() {
    let options = SessionOptions::new("iqn.test:host");
    let (mut login, _) = start(&options);
    sent(login.handle(&reply(OPERATIONAL, None, 4, &[])));
    let step = login.handle(&reply(OPERATIONAL, Some(FULL_FEATURE), 6, &[]));
    let expected = Error::Protocol(ProtocolError::StatSn {
        expected: 5,
        found: 6,
    });
    assert_eq!(step.unwrap_err(), expected);
}

#[test]
fn equal_secrets_in_both_directions_are_refused_before_anything_is_sent() {
    let secret = Secret::new("the-same-secret");
    let chap = Chap::new("user", secret.clone()).with_mutual(None, secret);
    let options = SessionOptions {
        chap: Some(chap),
        ..SessionOptions::new("iqn.test:host")
    };
    let started = Login::start(&options, Purpose::Discovery);
    assert!(matches!(started, Err(Error::BadOptions { .. })));
}
