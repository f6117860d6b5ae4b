//! Login and text keys: `Key=value`, each ended by a zero byte (RFC 7143 section 6.1).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::ProtocolError;

/// The most text that a target may send in one negotiation step or SendTargets answer, in bytes.
pub(crate) const TEXT_LIMIT: usize = 1 << 20;
/// The longest binary value of CHAP, decoded (section 6.1).
const BINARY_LIMIT: usize = 1024;

/// Keys to send, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys(Vec<u8>);

impl Keys {
    pub(crate) fn add(&mut self, key: &str, value: &str) -> &mut Self {
        for part in [key.as_bytes(), b"=", value.as_bytes(), b"\0"] {
            self.0.extend_from_slice(part);
        }
        self
    }

    pub(crate) fn into_bytes(self) -> bytes::Bytes {
        self.0.into()
    }
}

/// Splits received text into pairs, in order of arrival.
pub(crate) fn pairs(text: &[u8]) -> Result<Vec<(&str, &str)>, ProtocolError> {
    let text = std::str::from_utf8(text).map_err(|_| ProtocolError::Text)?;
    text.split('\0')
        .filter(|item| !item.is_empty())
        .map(|item| item.split_once('=').ok_or(ProtocolError::Text))
        .collect()
}

/// The value of the first `key`.
pub(crate) fn find<'a>(pairs: &[(&'a str, &'a str)], key: &str) -> Option<&'a str> {
    pairs
        .iter()
        .find(|(found, _)| *found == key)
        .map(|(_, value)| *value)
}

/// A binary value in hexadecimal.
pub(crate) fn encode_binary(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(2 + bytes.len() * 2);
    out.push_str("0x");
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// Decodes `0x` hexadecimal or `0b` base64.
pub(crate) fn decode_binary(value: &str) -> Result<Vec<u8>, ProtocolError> {
    let digits = value.get(2..).ok_or(ProtocolError::Text)?;
    let bytes = match &value[..2] {
        "0x" | "0X" => decode_hex(digits.as_bytes())?,
        "0b" | "0B" => STANDARD.decode(digits).map_err(|_| ProtocolError::Text)?,
        _ => return Err(ProtocolError::Text),
    };
    if bytes.len() > BINARY_LIMIT {
        Err(ProtocolError::Text)
    } else {
        Ok(bytes)
    }
}

fn decode_hex(digits: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    let nibble = |digit: u8| char::from(digit).to_digit(16).ok_or(ProtocolError::Text);
    // A number may drop its leading zero, so an odd count starts with half a byte.
    let (first, rest) = digits.split_at(digits.len() % 2);
    let mut out = Vec::with_capacity(digits.len().div_ceil(2));
    for digit in first {
        out.push(nibble(*digit)? as u8);
    }
    for pair in rest.chunks_exact(2) {
        out.push((nibble(pair[0])? << 4 | nibble(pair[1])?) as u8);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_in_order_and_trailing_zeros_are_ignored() {
        let mut keys = Keys::default();
        keys.add("A", "1").add("B", "x=y");
        let mut bytes = keys.into_bytes().to_vec();
        bytes.extend_from_slice(b"\0\0");
        let pairs = pairs(&bytes).unwrap();
        assert_eq!(pairs, [("A", "1"), ("B", "x=y")]);
        assert_eq!(find(&pairs, "B"), Some("x=y"));
        assert_eq!(find(&pairs, "C"), None);
    }

    #[test]
    fn text_without_equals_sign_or_utf8_is_malformed() {
        assert_eq!(pairs(b"Key\0"), Err(ProtocolError::Text));
        assert_eq!(pairs(b"K=\xff\0"), Err(ProtocolError::Text));
    }

    #[test]
    fn binary_values_decode_from_hex_and_base64() {
        assert_eq!(decode_binary("0x0aFf").unwrap(), [0x0a, 0xff]);
        assert_eq!(decode_binary("0Xaff").unwrap(), [0x0a, 0xff]);
        assert_eq!(decode_binary("0bCv8=").unwrap(), [0x0a, 0xff]);
        assert_eq!(
            decode_binary(&encode_binary(&[1, 0xfe])).unwrap(),
            [1, 0xfe]
        );
        for bad in [
            "",
            "0",
            "12",
            "0xzz",
            "0b!",
            "\u{e9}x",
            &format!("0x{}", "00".repeat(1025)),
        ] {
            assert_eq!(decode_binary(bad), Err(ProtocolError::Text), "{bad}");
        }
    }
}
