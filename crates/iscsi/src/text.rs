//! `Key=Value` text (RFC 7143 6.1).

use bytes::Bytes;
use thiserror::Error;

/// Longest key.
pub const KEY_BYTES_MAX: usize = 63;

/// Longest value: a CHAP binary of 1024 bytes in hexadecimal is the longest that is needed.
pub const VALUE_BYTES_MAX: usize = 4096;

/// Most pairs in one negotiation step.
pub const PAIRS_MAX: usize = 256;

/// Why a text could not be read; nothing was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TextError {
    /// A pair without `=`, an empty key, or a last pair without its null byte.
    #[error("text is not a list of null-terminated Key=Value pairs")]
    Malformed,
    /// A key, a value or the list is too long.
    #[error("text key, value or list too long")]
    TooLong,
}

/// One pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Case-sensitive key.
    pub key: String,
    /// Value; may be empty.
    pub value: String,
}

/// Reads a whole text. A missing null byte after the last pair is forgiven: some initiators
/// leave it out.
pub fn parse(bytes: &[u8]) -> Result<Vec<Pair>, TextError> {
    let mut pairs = Vec::new();
    for pair in bytes
        .split(|byte| *byte == 0)
        .filter(|pair| !pair.is_empty())
    {
        let pair = std::str::from_utf8(pair).map_err(|_| TextError::Malformed)?;
        let (key, value) = pair.split_once('=').ok_or(TextError::Malformed)?;
        if key.is_empty() {
            return Err(TextError::Malformed);
        }
        if key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX || pairs.len() >= PAIRS_MAX {
            return Err(TextError::TooLong);
        }
        pairs.push(Pair {
            key: key.to_owned(),
            value: value.to_owned(),
        });
    }
    Ok(pairs)
}

/// Text to be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends a pair.
    pub fn put(&mut self, key: &str, value: &str) {
        for part in [key, "=", value, "\0"] {
            self.bytes.extend_from_slice(part.as_bytes());
        }
    }

    /// The text.
    pub fn finish(self) -> Bytes {
        self.bytes.into()
    }
}

/// A number in decimal or in hexadecimal after `0x`.
pub fn parse_number(value: &str) -> Option<u32> {
    match value
        .strip_prefix("0x")
        .or_else(|| value.strip_prefix("0X"))
    {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None if value.bytes().all(|byte| byte.is_ascii_digit()) => value.parse().ok(),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pairs_survive_the_round_trip() {
        let mut writer = Writer::default();
        writer.put("TargetName", "iqn.x");
        writer.put("Empty", "");
        writer.put("Equals", "a=b");
        let pairs = parse(&writer.finish()).unwrap();
        let seen: Vec<_> = pairs
            .iter()
            .map(|pair| (pair.key.as_str(), pair.value.as_str()))
            .collect();
        assert_eq!(
            seen,
            [("TargetName", "iqn.x"), ("Empty", ""), ("Equals", "a=b")]
        );
    }

    #[test]
    fn malformed_and_oversized_text_is_refused() {
        assert_eq!(parse(b"novalue\0"), Err(TextError::Malformed));
        assert_eq!(parse(b"=x\0"), Err(TextError::Malformed));
        assert_eq!(parse(b"\xff=x\0"), Err(TextError::Malformed));
        let key = format!("{}=1\0", "k".repeat(64));
        assert_eq!(parse(key.as_bytes()), Err(TextError::TooLong));
        assert_eq!(
            parse("a=1\0".repeat(257).as_bytes()),
            Err(TextError::TooLong)
        );
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(parse_number("8192"), Some(8192));
        assert_eq!(parse_number("0x10"), Some(16));
        for wrong in ["", "0x", "-1", "+1", "1k", "4294967296"] {
            assert_eq!(parse_number(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
