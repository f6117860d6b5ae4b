//! CHAP (RFC 7143 12.1.3, RFC 1994): challenge, response and their encoding in text.

use std::fmt;

use aws_lc_rs::{constant_time, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};

/// Longest CHAP binary accepted, in bytes (RFC 7143 12.1.3).
pub const BINARY_BYTES_MAX: usize = 1024;

/// A CHAP secret; its value never reaches a log or an error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Wraps the secret's bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self(secret.into_bytes())
    }
}

impl From<&str> for Secret {
    fn from(secret: &str) -> Self {
        Self(secret.as_bytes().to_vec())
    }
}

/// Hash of a CHAP exchange, by its number in the IANA PPP registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Algorithm {
    /// MD5: the one that every initiator has.
    Md5 = 5,
    /// SHA-1.
    Sha1 = 6,
    /// SHA-256.
    Sha256 = 7,
    /// SHA3-256.
    Sha3 = 8,
}

impl Algorithm {
    /// The first supported algorithm of a `CHAP_A` list, which has the initiator's order of
    /// preference (RFC 7143 12.1.3). Some initiators list what they cannot do behind what they can.
    pub fn first_of(list: &str) -> Option<Self> {
        let supported = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha3];
        list.split(',').find_map(|offered| {
            supported
                .into_iter()
                .find(|algorithm| offered.trim() == (*algorithm as u8).to_string())
        })
    }

    /// Length of a response, and of the challenges that this target sends, in bytes.
    pub const fn response_bytes(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Sha3 => 32,
        }
    }

    /// hash(identifier || secret || challenge).
    pub fn response(self, identifier: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
        let input = [&[identifier], &secret.0[..], challenge].concat();
        let algorithm = match self {
            Self::Md5 => return Md5::digest(&input).to_vec(),
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &digest::SHA256,
            Self::Sha3 => &digest::SHA3_256,
        };
        digest::digest(algorithm, &input).as_ref().to_vec()
    }

    /// Whether `response` answers the challenge; takes the same time whatever the difference.
    pub fn verify(
        self,
        identifier: u8,
        secret: &Secret,
        challenge: &[u8],
        response: &[u8],
    ) -> bool {
        let expected = self.response(identifier, secret, challenge);
        constant_time::verify_slices_are_equal(&expected, response).is_ok()
    }
}

/// Whether two texts are equal; takes the same time whatever the difference.
pub fn equal_text(left: &str, right: &str) -> bool {
    constant_time::verify_slices_are_equal(left.as_bytes(), right.as_bytes()).is_ok()
}

/// A binary value in text: hexadecimal after `0x` or Base64 after `0b`. `None` if it is
/// malformed, empty or longer than [`BINARY_BYTES_MAX`].
pub fn decode_binary(value: &str) -> Option<Vec<u8>> {
    let bytes = match value.get(..2)? {
        "0x" | "0X" => decode_hex(&value[2..])?,
        "0b" | "0B" => STANDARD.decode(&value[2..]).ok()?,
        _ => return None,
    };
    (1..=BINARY_BYTES_MAX)
        .contains(&bytes.len())
        .then_some(bytes)
}

/// A binary value as hexadecimal text.
pub fn encode_binary(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("0x");
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn decode_hex(digits: &str) -> Option<Vec<u8>> {
    // An odd number of digits means a leading zero.
    let padded = if digits.len().is_multiple_of(2) {
        digits.to_owned()
    } else {
        format!("0{digits}")
    };
    padded
        .as_bytes()
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).ok()?;
            if !pair.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return None;
            }
            u8::from_str_radix(pair, 16).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn md5_response_is_the_known_one() {
        let challenge: Vec<u8> = (0..16).collect();
        let secret = Secret::from("secretsecret1234");
        let response = Algorithm::Md5.response(0x27, &secret, &challenge);
        assert_eq!(
            encode_binary(&response),
            "0x296f112870ee0e26e662ee3036d60bac"
        );
        assert!(Algorithm::Md5.verify(0x27, &secret, &challenge, &response));
        assert!(!Algorithm::Md5.verify(0x28, &secret, &challenge, &response));
        assert!(!Algorithm::Md5.verify(0x27, &secret, &challenge, &response[..15]));
    }

    #[test]
    fn every_algorithm_answers_with_its_own_length() {
        for algorithm in [
            Algorithm::Md5,
            Algorithm::Sha1,
            Algorithm::Sha256,
            Algorithm::Sha3,
        ] {
            let response = algorithm.response(1, &Secret::from("s"), b"c");
            assert_eq!(response.len(), algorithm.response_bytes());
        }
    }

    #[test]
    fn the_first_supported_algorithm_of_the_initiators_list_wins() {
        assert_eq!(Algorithm::first_of("5"), Some(Algorithm::Md5));
        assert_eq!(Algorithm::first_of("9,7,5,6"), Some(Algorithm::Sha256));
        assert_eq!(Algorithm::first_of("9,55"), None);
    }

    #[test]
    fn binaries_come_in_hexadecimal_and_base64() {
        assert_eq!(decode_binary("0xABcd"), Some(vec![0xab, 0xcd]));
        assert_eq!(decode_binary("0xf"), Some(vec![0x0f]));
        assert_eq!(decode_binary("0bAAEC"), Some(vec![0, 1, 2]));
        for wrong in ["", "0x", "0b", "0xzz", "0x+1", "0b!!", "ab", "é"] {
            assert_eq!(decode_binary(wrong), None, "{wrong}");
        }
        assert_eq!(decode_binary(&format!("0x{}", "00".repeat(1025))), None);
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert_eq!(format!("{:?}", Secret::from("hunter2")), "Secret(..)");
    }

    proptest! {
        #[test]
        fn any_text_decodes_or_is_refused(text: String) {
            let _ = decode_binary(&text);
        }

        #[test]
        fn encoded_binaries_decode_to_themselves(
            bytes in proptest::collection::vec(any::<u8>(), 1..64)
        ) {
            prop_assert_eq!(decode_binary(&encode_binary(&bytes)), Some(bytes));
        }
    }
}
