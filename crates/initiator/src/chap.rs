//! CHAP, both directions (RFC 7143 section 12.1, RFC 1994): response = H(identifier || secret ||
//! challenge).
//!
//! Secrets appear in no `Debug` output and are compared in constant time.

use std::fmt;

use aws_lc_rs::{constant_time, digest, rand};
use md5::Digest as _;

/// A shared secret. Printing it shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Wraps the bytes; 12 to 64 are usual, most peers stop at 16.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// How to prove who we are, and optionally how the target must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chap {
    /// Our CHAP user name.
    pub user: String,
    /// Our secret.
    pub secret: Secret,
    /// What the target must prove; the session fails without it.
    pub mutual: Option<MutualChap>,
    /// Hashes to offer, most wanted first. MD5 is what every target knows.
    pub algorithms: Vec<ChapAlgorithm>,
}

impl Chap {
    /// One-way CHAP with MD5.
    pub fn new(user: impl Into<String>, secret: Secret) -> Self {
        Self {
            user: user.into(),
            secret,
            mutual: None,
            algorithms: vec![ChapAlgorithm::Md5],
        }
    }

    /// Demands that the target proves itself too. Its secret must differ from ours.
    pub fn with_mutual(self, user: Option<String>, secret: Secret) -> Self {
        Self {
            mutual: Some(MutualChap { user, secret }),
            ..self
        }
    }
}

/// What the target must prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MutualChap {
    /// The name that the target must give; `None` accepts any.
    pub user: Option<String>,
    /// The target's secret.
    pub secret: Secret,
}

/// A hash of CHAP, by its number in CHAP_A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChapAlgorithm {
    /// Number 5.
    Md5,
    /// Number 7.
    Sha256,
}

impl ChapAlgorithm {
    /// The number in CHAP_A.
    pub fn number(self) -> u8 {
        match self {
            Self::Md5 => 5,
            Self::Sha256 => 7,
        }
    }

    pub(crate) fn response(self, identifier: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
        let parts: [&[u8]; 3] = [&[identifier], &secret.0, challenge];
        match self {
            Self::Md5 => {
                let mut hash = md5::Md5::new();
                parts.iter().for_each(|part| hash.update(part));
                hash.finalize().to_vec()
            }
            Self::Sha256 => {
                let mut hash = digest::Context::new(&digest::SHA256);
                parts.iter().for_each(|part| hash.update(part));
                hash.finish().as_ref().to_vec()
            }
        }
    }
}

/// A challenge to the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) identifier: u8,
    pub(crate) bytes: [u8; 16],
}

impl Challenge {
    /// A fresh one; `None` if the system has no randomness.
    pub(crate) fn random() -> Option<Self> {
        let mut random = [0; 17];
        rand::fill(&mut random).ok()?;
        let (identifier, rest) = random.split_first()?;
        Some(Self {
            identifier: *identifier,
            bytes: rest.try_into().ok()?,
        })
    }

    pub(crate) fn is_answered_by(
        &self,
        response: &[u8],
        algorithm: ChapAlgorithm,
        secret: &Secret,
    ) -> bool {
        let expected = algorithm.response(self.identifier, secret, &self.bytes);
        constant_time::verify_slices_are_equal(&expected, response).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn md5_response_matches_the_published_vector() {
        let challenge: Vec<u8> = (0..16).collect();
        let secret = Secret::new("secretsecret1234");
        let expected = "0x296f112870ee0e26e662ee3036d60bac";
        let response = ChapAlgorithm::Md5.response(0x27, &secret, &challenge);
        assert_eq!(crate::text::encode_binary(&response), expected);
    }

    #[test]
    fn a_challenge_accepts_the_right_secret_and_hash_alone() {
        let challenge = Challenge::random().unwrap();
        let right = Secret::new("targettarget1");
        let wrong = Secret::new("targettarget2");
        for algorithm in [ChapAlgorithm::Md5, ChapAlgorithm::Sha256] {
            let answer = algorithm.response(challenge.identifier, &right, &challenge.bytes);
            assert!(challenge.is_answered_by(&answer, algorithm, &right));
            assert!(!challenge.is_answered_by(&answer, algorithm, &wrong));
            assert!(!challenge.is_answered_by(&answer[1..], algorithm, &right));
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let chap = Chap::new("user", Secret::new("hunter2hunter2"));
        assert!(!format!("{chap:?}").contains("hunter2"));
    }
}
