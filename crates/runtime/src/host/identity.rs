//! Names that never change: a cluster's and a node's.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::task::Runtime;

macro_rules! unique_id {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        #[derive(
            Clone,
            Copy,
            PartialEq,
            Eq,
            PartialOrd,
            Ord,
            Hash,
            serde::Serialize,
            serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// A new one, random in all but the bits that mark a UUID of version 4
            /// (RFC 9562, 5.4).
            pub fn random(runtime: &Runtime) -> Self {
                let mut bytes = [0; 16];
                runtime.random_bytes(&mut bytes);
                bytes[6] = bytes[6] & 0x0f | 0x40;
                bytes[8] = bytes[8] & 0x3f | 0x80;
                Self(bytes)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(&self.0, formatter)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(&self.0, formatter)
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;

            fn from_str(text: &str) -> Result<Self, NotAnId> {
                parse_uuid(text).map(Self).ok_or(NotAnId)
            }
        }
    };
}

unique_id! {
    /// A cluster, from its first start to its end.
    ClusterId
}

unique_id! {
    /// A node's data directory: a node number that appears with another one of these is a
    /// mistake or a theft.
    NodeUuid
}

/// The text is no UUID in its usual form of 36 characters.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("not an id of the form 01234567-89ab-cdef-0123-456789abcdef")]
pub struct NotAnId;

/// Bytes in each of the five groups of a UUID's text.
const GROUPS: [usize; 5] = [4, 2, 2, 2, 6];

fn write_uuid(bytes: &[u8; 16], formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut rest = &bytes[..];
    for (number, len) in GROUPS.into_iter().enumerate() {
        if number > 0 {
            formatter.write_str("-")?;
        }
        let (group, after) = rest.split_at(len);
        for byte in group {
            write!(formatter, "{byte:02x}")?;
        }
        rest = after;
    }
    Ok(())
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let mut bytes = Vec::with_capacity(16);
    let mut groups = text.split('-');
    for len in GROUPS {
        let group = groups.next()?.as_bytes();
        if group.len() != len * 2 {
            return None;
        }
        for pair in group.chunks(2) {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            bytes.push(u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?);
        }
    }
    if groups.next().is_some() {
        return None;
    }
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text_form_and_a_damaged_text_is_refused() {
        let id = ClusterId(*b"\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef");
        let text = "01234567-89ab-cdef-0123-456789abcdef";
        assert_eq!(id.to_string(), text);
        assert_eq!(text.parse(), Ok(id));
        for damaged in [
            &text[1..],
            &text.replace('a', "g"),
            &text.replace('-', ""),
            "",
        ] {
            assert_eq!(damaged.parse::<ClusterId>(), Err(NotAnId), "{damaged}");
        }
        assert_eq!(format!("{text}-00").parse::<ClusterId>(), Err(NotAnId));
    }
}
