//! Logins as lists of PDUs.

use std::cell::RefCell;

use proptest::prelude::*;

use super::*;
use crate::chap::{self, Secret};
use crate::targets::Credentials;

struct TestPolicy {
    auth: TargetAuth,
    outstanding: RefCell<Vec<Vec<u8>>>,
}

const CHALLENGE: [u8; 16] = [7; 16];

impl Policy for TestPolicy {
    fn admit(&self, kind: &SessionKind, _initiator: &IscsiName) -> Result<Admittance, LoginStatus> {
        match kind {
            SessionKind::Normal(name) if &**name == "iqn.2026-01.test:moved" => {
                Err(LoginStatus::MovedTemporarily("10.0.0.2:3260,2".to_owned()))
            }
            SessionKind::Normal(name) if &**name != "iqn.2026-01.test:t" => {
                Err(LoginStatus::NotFound)
            }
            SessionKind::Normal(_) | SessionKind::Discovery => Ok(Admittance {
                auth: self.auth.clone(),
                portal_group_tag: 9,
            }),
        }
    }

    fn issue_challenge(&self, _algorithm: Algorithm) -> Challenge {
        self.outstanding.borrow_mut().push(CHALLENGE.to_vec());
        Challenge {
            identifier: 0x27,
            bytes: CHALLENGE.to_vec(),
        }
    }

    fn is_outstanding(&self, challenge: &[u8]) -> bool {
        self.outstanding
            .borrow()
            .iter()
            .any(|known| known == challenge)
    }
}

fn policy(auth: TargetAuth) -> TestPolicy {
    TestPolicy {
        auth,
        outstanding: RefCell::default(),
    }
}

fn chap(mutual: bool) -> TestPolicy {
    policy(TargetAuth::Chap(vec![Credentials {
        username: "user".to_owned(),
        secret: Secret::from("secretsecret1234"),
        mutual: mutual.then(|| ("target".to_owned(), Secret::from("othersecret12345"))),
        number: 0,
    }]))
}

const SECURITY: u8 = 0;
const SECURITY_TO_OPERATIONAL: u8 = 0x81;
const OPERATIONAL: u8 = 0x04;
const OPERATIONAL_TO_FULL: u8 = 0x87;

fn request(flags: u8, pairs: &[(&str, &str)]) -> Pdu {
    let mut pdu = Pdu::new(0x43);
    pdu.header[1] = flags;
    pdu.header[8..14].copy_from_slice(&[0, 2, 0x3d, 0, 0, 1]);
    pdu.put_u32(16, 5);
    pdu.put_u32(24, 100);
    pdu.put_u32(28, 1);
    let mut writer = Writer::default();
    pairs.iter().for_each(|(key, value)| writer.put(key, value));
    pdu.data = writer.finish();
    pdu
}

const NAMES: [(&str, &str); 2] = [
    ("InitiatorName", "iqn.2026-01.test:i"),
    ("TargetName", "iqn.2026-01.test:t"),
];

/// Flags, status class and detail, and text of a response.
type Shown = (u8, [u8; 2], String);

fn shown(pdu: &Pdu) -> Shown {
    let text = String::from_utf8(pdu.data.to_vec())
        .unwrap()
        .replace('\0', " ");
    (
        pdu.header[1],
        [pdu.header[36], pdu.header[37]],
        text.trim_end().to_owned(),
    )
}

/// Runs a login to its end: the responses, and the outcome if it succeeded.
fn run(policy: &TestPolicy, requests: &[Pdu]) -> (Vec<Shown>, Option<FullFeature>) {
    let mut login = Login::default();
    let mut responses = Vec::new();
    for request in requests {
        match login.handle(request, policy) {
            Step::Reply(next, response) => {
                responses.push(shown(&response));
                login = *next;
            }
            Step::Established(session) => {
                responses.push(shown(&session.response(1, 200)));
                return (responses, Some(*session));
            }
            Step::Refused(response, _) => {
                responses.push(shown(&response));
                return (responses, None);
            }
            Step::Close => return (responses, None),
        }
    }
    (responses, None)
}

fn refused(policy: &TestPolicy, requests: &[Pdu]) -> [u8; 2] {
    let (responses, session) = run(policy, requests);
    assert_eq!(session, None);
    responses.last().expect("a response").1
}

#[test]
fn login_without_authentication_goes_through_both_stages() {
    let mut first = NAMES.to_vec();
    first.push(("AuthMethod", "CHAP,None"));
    let (responses, session) = run(
        &policy(TargetAuth::None),
        &[
            request(SECURITY_TO_OPERATIONAL, &first),
            request(
                OPERATIONAL_TO_FULL,
                &[("InitialR2T", "No"), ("X-unknown", "1")],
            ),
        ],
    );
    assert_eq!(
        responses,
        [
            (
                0x81,
                [0, 0],
                "TargetPortalGroupTag=9 AuthMethod=None".to_owned()
            ),
            (
                0x87,
                [0, 0],
                "InitialR2T=No X-unknown=NotUnderstood MaxRecvDataSegmentLength=262144".to_owned()
            ),
        ]
    );
    let session = session.unwrap();
    assert_eq!(
        session.kind,
        SessionKind::Normal(IscsiName::new("iqn.2026-01.test:t").unwrap())
    );
    assert_eq!((session.command_number, session.status_number), (100, 3));
    assert!(!session.parameters.initial_r2t);
    let response = session.response(0x1234, 200);
    assert_eq!(
        (
            response.u16_at(14),
            response.u32_at(24),
            response.u32_at(32)
        ),
        (0x1234, 2, 200)
    );
}

#[test]
fn login_may_start_in_the_operational_stage_only_without_authentication() {
    let requests = [request(OPERATIONAL_TO_FULL, &NAMES)];
    assert!(run(&policy(TargetAuth::None), &requests).1.is_some());
    assert_eq!(refused(&chap(false), &requests), [2, 1]);
}

/// The three requests of a CHAP login with this name and response.
fn chap_requests(name: &str, response: &str, more: &[(&str, &str)]) -> [Pdu; 3] {
    let mut first = NAMES.to_vec();
    first.push(("AuthMethod", "CHAP"));
    let mut last = vec![("CHAP_N", name), ("CHAP_R", response)];
    last.extend_from_slice(more);
    [
        request(SECURITY_TO_OPERATIONAL, &first),
        request(SECURITY, &[("CHAP_A", "5")]),
        request(SECURITY_TO_OPERATIONAL, &last),
    ]
}

fn good_response() -> String {
    let secret = Secret::from("secretsecret1234");
    chap::encode_binary(&Algorithm::Md5.response(0x27, &secret, &CHALLENGE))
}

#[test]
fn one_way_chap_transcript() {
    let mut requests = chap_requests("user", &good_response(), &[]).to_vec();
    requests.push(request(OPERATIONAL_TO_FULL, &[]));
    let (responses, session) = run(&chap(false), &requests);
    assert_eq!(
        responses[..3],
        [
            (
                0x00,
                [0, 0],
                "TargetPortalGroupTag=9 AuthMethod=CHAP".to_owned()
            ),
            (
                0x00,
                [0, 0],
                format!("CHAP_A=5 CHAP_I=39 CHAP_C=0x{}", "07".repeat(16))
            ),
            (0x81, [0, 0], String::new()),
        ]
    );
    assert!(session.is_some());
}

#[test]
fn mutual_chap_answers_the_initiators_challenge() {
    let more = [("CHAP_I", "1"), ("CHAP_C", "0x0102")];
    let requests = chap_requests("user", &good_response(), &more);
    let (responses, _) = run(&chap(true), &requests);
    let answer = Algorithm::Md5.response(1, &Secret::from("othersecret12345"), &[1, 2]);
    let expected = format!("CHAP_N=target CHAP_R={}", chap::encode_binary(&answer));
    assert_eq!(responses[2], (0x81, [0, 0], expected));
}

#[test]
fn wrong_name_wrong_secret_and_wrong_form_fail_alike() {
    let short = &good_response()[..32];
    for (name, response) in [
        ("user", "0x00112233445566778899aabbccddeeff"),
        ("use", good_response().as_str()),
        ("user2", good_response().as_str()),
        ("user", short),
        ("user", "not binary"),
    ] {
        assert_eq!(
            refused(&chap(false), &chap_requests(name, response, &[])),
            [2, 1]
        );
    }
}

#[test]
fn mutual_chap_refuses_reflection_and_a_missing_challenge() {
    let reflected = chap::encode_binary(&CHALLENGE);
    let more = [("CHAP_I", "39"), ("CHAP_C", reflected.as_str())];
    assert_eq!(
        refused(&chap(true), &chap_requests("user", &good_response(), &more)),
        [2, 1]
    );
    assert_eq!(
        refused(&chap(true), &chap_requests("user", &good_response(), &[])),
        [2, 1]
    );
    let other_login = chap(true);
    other_login.outstanding.borrow_mut().push(vec![8; 16]);
    let stolen = chap::encode_binary(&[8; 16]);
    let more = [("CHAP_I", "1"), ("CHAP_C", stolen.as_str())];
    assert_eq!(
        refused(
            &other_login,
            &chap_requests("user", &good_response(), &more)
        ),
        [2, 1]
    );
}

#[test]
fn chap_cannot_be_skipped() {
    let mut first = NAMES.to_vec();
    first.push(("AuthMethod", "CHAP"));
    let first = request(SECURITY, &first);
    let jumps = [
        request(SECURITY_TO_OPERATIONAL, &[]),
        request(0x83, &[]),
        request(OPERATIONAL, &[]),
        request(SECURITY, &[("CHAP_N", "user"), ("CHAP_R", "0x00")]),
    ];
    for jump in jumps {
        assert_eq!(refused(&chap(false), &[first.clone(), jump])[0], 2);
    }
    let mut none = NAMES.to_vec();
    none.push(("AuthMethod", "None"));
    assert_eq!(
        refused(&chap(false), &[request(SECURITY_TO_OPERATIONAL, &none)]),
        [2, 1]
    );
    assert_eq!(refused(&chap(false), &[request(0x83, &NAMES)]), [2, 1]);
}

#[test]
fn equal_secrets_in_both_directions_are_a_target_error() {
    let secret = Secret::from("secretsecret1234");
    let auth = TargetAuth::Chap(vec![Credentials {
        username: "user".to_owned(),
        secret: secret.clone(),
        mutual: Some(("target".to_owned(), secret)),
        number: 0,
    }]);
    assert_eq!(refused(&policy(auth), &[request(SECURITY, &NAMES)]), [3, 0]);
}

#[test]
fn names_and_session_types_are_checked() {
    let open = policy(TargetAuth::None);
    type Case<'a> = (&'a [(&'a str, &'a str)], [u8; 2]);
    let cases: [Case<'_>; 6] = [
        (&[("TargetName", "iqn.2026-01.test:t")], [2, 7]),
        (&[("InitiatorName", "iqn.2026-01.test:i")], [2, 7]),
        (
            &[
                ("InitiatorName", "iqn.2026-01.test:i"),
                ("TargetName", "iqn.2026-01.test:x"),
            ],
            [2, 3],
        ),
        (
            &[
                ("InitiatorName", "iqn.2026-01.test:i"),
                ("TargetName", "iqn.2026-01.test:moved"),
            ],
            [1, 1],
        ),
        (
            &[
                ("InitiatorName", "iqn.2026-01.test:i"),
                ("SessionType", "Other"),
            ],
            [2, 9],
        ),
        (&[("InitiatorName", "a"), ("InitiatorName", "b")], [2, 0]),
    ];
    for (pairs, status) in cases {
        assert_eq!(
            refused(&open, &[request(OPERATIONAL_TO_FULL, pairs)]),
            status,
            "{pairs:?}"
        );
    }
    let discovery = [
        ("InitiatorName", "iqn.2026-01.test:i"),
        ("SessionType", "Discovery"),
    ];
    assert!(
        run(&open, &[request(OPERATIONAL_TO_FULL, &discovery)])
            .1
            .is_some()
    );
}

/// RFC 7143 13.14, in either order of the keys, and in a stage of its own.
#[test]
fn no_login_agrees_on_a_first_burst_above_the_burst() {
    let open = policy(TargetAuth::None);
    let (first, burst) = (("FirstBurstLength", "65536"), ("MaxBurstLength", "4096"));
    for pair in [[first, burst], [burst, first]] {
        let mut keys = NAMES.to_vec();
        keys.extend(pair);
        let (responses, session) = run(&open, &[request(OPERATIONAL_TO_FULL, &keys)]);
        let text = &responses[0].2;
        assert!(
            text.contains("MaxBurstLength=4096 FirstBurstLength=4096"),
            "{text}"
        );
        let agreed = session.expect("a login").parameters;
        assert_eq!(
            (agreed.first_burst_bytes, agreed.max_burst_bytes),
            (4096, 4096)
        );
    }
    let mut keys = NAMES.to_vec();
    keys.push(first);
    let texts = [
        request(OPERATIONAL, &keys),
        request(OPERATIONAL_TO_FULL, &[burst]),
    ];
    let (responses, session) = run(&open, &texts);
    assert!(
        responses[1].2.contains("MaxBurstLength=Reject"),
        "{responses:?}"
    );
    let agreed = session.expect("a login").parameters;
    assert!(agreed.first_burst_bytes <= agreed.max_burst_bytes);
}

#[test]
fn text_may_be_split_anywhere_across_requests() {
    let whole = request(OPERATIONAL_TO_FULL, &NAMES);
    for split in 0..whole.data.len() {
        let mut first = request(OPERATIONAL | CONTINUE, &[]);
        first.data = whole.data.slice(..split);
        let mut second = whole.clone();
        second.data = whole.data.slice(split..);
        let (responses, session) = run(&policy(TargetAuth::None), &[first, second]);
        assert_eq!(responses[0], (0x04, [0, 0], String::new()));
        assert!(session.is_some(), "split at {split}");
    }
}

#[test]
fn endless_text_is_refused() {
    let mut part = request(OPERATIONAL | CONTINUE, &[]);
    part.data = vec![b'a'; 8192].into();
    assert_eq!(refused(&policy(TargetAuth::None), &vec![part; 9]), [2, 0]);
}

#[test]
fn a_changed_identity_and_impossible_stages_are_initiator_errors() {
    let open = policy(TargetAuth::None);
    let first = request(SECURITY, &NAMES);
    let mut other = request(SECURITY_TO_OPERATIONAL, &[]);
    other.header[13] = 2;
    assert_eq!(refused(&open, &[first.clone(), other]), [2, 0]);
    for flags in [0x80, 0x84, 0x08, 0x82, 0xc1, 0x8c] {
        assert_eq!(
            refused(&open, &[request(flags, &NAMES)]),
            [2, 0],
            "{flags:x}"
        );
    }
    let mut version = first;
    version.header[3] = 1;
    assert_eq!(refused(&open, &[version]), [2, 5]);
}

#[test]
fn a_session_handle_cannot_be_joined() {
    let mut join = request(OPERATIONAL_TO_FULL, &NAMES);
    join.put_u16(14, 77);
    assert_eq!(refused(&policy(TargetAuth::None), &[join]), [2, 0x0a]);
}

proptest! {
    #[test]
    fn random_requests_never_panic_and_never_pass_chap(
        requests in proptest::collection::vec(
            (any::<[u8; 48]>(), proptest::collection::vec(any::<u8>(), 0..64), any::<bool>()),
            1..6,
        )
    ) {
        let policy = chap(true);
        let mut login = Login::default();
        for (mut header, data, as_login) in requests {
            if as_login {
                header[0] = 0x43;
                header[3] = 0;
            }
            let pdu = Pdu { header, additional: Bytes::new(), data: data.into() };
            match login.handle(&pdu, &policy) {
                Step::Reply(next, _) => login = *next,
                Step::Established(_) => {
                    return Err(TestCaseError::fail("passed without a secret"));
                }
                Step::Refused(..) | Step::Close => return Ok(()),
            }
        }
    }
}

#[test]
fn discovery_asks_for_chap_only_those_who_offer_it_and_then_insists() {
    let credentials = Credentials {
        username: "user".to_owned(),
        secret: Secret::from("secretsecret1234"),
        mutual: None,
        number: 0,
    };
    let policy = policy(TargetAuth::Optional(vec![credentials]));
    // As open-iscsi does: no security stage at all.
    let discovery = [
        ("InitiatorName", "iqn.2026-01.test:i"),
        ("SessionType", "Discovery"),
    ];
    let direct = [request(OPERATIONAL_TO_FULL, &discovery)];
    assert!(run(&policy, &direct).1.is_some());
    let offer = |methods| {
        let mut pairs = NAMES.to_vec();
        pairs.push(("AuthMethod", methods));
        request(SECURITY, &pairs)
    };
    let (responses, _) = run(&policy, &[offer("None")]);
    assert!(responses[0].2.contains("AuthMethod=None"), "{responses:?}");
    let (responses, _) = run(&policy, &[offer("CHAP,None")]);
    assert!(responses[0].2.contains("AuthMethod=CHAP"), "{responses:?}");
    let wrong = [
        offer("CHAP,None"),
        request(SECURITY, &[("CHAP_A", "5")]),
        request(
            SECURITY_TO_OPERATIONAL,
            &[("CHAP_N", "user"), ("CHAP_R", "0x00")],
        ),
    ];
    assert_eq!(refused(&policy, &wrong), [2, 1]);
}
