//! A node's policy with known secrets and predictable challenges.

use std::cell::{Cell, RefCell};

use holdfast_iscsi::chap::Algorithm;
use holdfast_iscsi::login::{Admittance, Challenge, LoginStatus, Policy, SessionKind};
use holdfast_iscsi::{Credentials, TargetAuth};
use holdfast_name::IscsiName;

/// The initiator's name in CHAP.
pub const USER: &str = "initiator";
/// The initiator's secret. No dictionary has it and no input is that lucky, so only who computes
/// with it can answer a challenge.
pub const SECRET: &str = "\u{17}6Vq-fuzz-secret-\u{1}9z";
/// The target's secret.
pub const MUTUAL_SECRET: &str = "\u{18}7Wr-fuzz-mutual-\u{2}8y";
/// The only target.
pub const TARGET: &str = "iqn.2026-01.t:v";

/// The policy.
pub struct TestPolicy {
    auth: TargetAuth,
    issued: Cell<u8>,
    outstanding: RefCell<Vec<Vec<u8>>>,
}

impl TestPolicy {
    /// 0: none, 1: CHAP, 2: mutual CHAP, 3: optional CHAP.
    pub fn new(kind: u8) -> Self {
        let credentials = |mutual: bool| Credentials {
            number: u64::from(mutual),
            username: USER.to_owned(),
            secret: SECRET.into(),
            mutual: mutual.then(|| ("target".to_owned(), MUTUAL_SECRET.into())),
        };
        let auth = match kind & 3 {
            0 => TargetAuth::None,
            1 => TargetAuth::Chap(vec![credentials(false)]),
            2 => TargetAuth::Chap(vec![credentials(true)]),
            _ => TargetAuth::Optional(vec![credentials(true), credentials(false)]),
        };
        Self {
            auth,
            issued: Cell::new(0),
            outstanding: RefCell::default(),
        }
    }

    /// Whether nobody gets in without the secret.
    pub fn requires_proof(&self) -> bool {
        matches!(self.auth, TargetAuth::Chap(_))
    }
}

impl Policy for TestPolicy {
    fn admit(&self, kind: &SessionKind, _initiator: &IscsiName) -> Result<Admittance, LoginStatus> {
        match kind {
            SessionKind::Normal(name) if &**name != TARGET => Err(LoginStatus::NotFound),
            SessionKind::Normal(_) | SessionKind::Discovery => Ok(Admittance {
                auth: self.auth.clone(),
                portal_group_tag: 1,
            }),
        }
    }

    fn issue_challenge(&self, algorithm: Algorithm) -> Challenge {
        let number = self.issued.get().wrapping_add(1);
        self.issued.set(number);
        let bytes = vec![number; algorithm.response_bytes()];
        self.outstanding.borrow_mut().push(bytes.clone());
        Challenge {
            identifier: number,
            bytes,
        }
    }

    fn is_outstanding(&self, challenge: &[u8]) -> bool {
        let outstanding = self.outstanding.borrow();
        outstanding.iter().any(|issued| issued == challenge)
    }
}
