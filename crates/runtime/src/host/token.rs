//! The text that an operator carries from a cluster to a new machine.
//!
//! ```text
//! holdfast1.<base64url of>  version u8 | length u16 | authority [32] | secret [16]
//!                           | address, UTF-8 | CRC-32 of all before
//! ```
//!
//! Numbers are little-endian; `length` counts every byte. The length tells a cut token from a
//! mistyped one, and the checksum finds every single mistyped character. The secret is random and
//! works once: whoever has the text may join in the operator's name.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::{Buf, BufMut};
use crc_fast::CrcAlgorithm::Crc32IsoHdlc;
use thiserror::Error;

use super::authority::AuthorityFingerprint;

const PREFIX: &str = "holdfast1.";
const VERSION: u8 = 1;
/// Everything but the address.
const FIXED_BYTES: usize = 1 + 2 + 32 + 16 + 4;
/// The longest DNS name, in brackets or not, with a port.
const ADDRESS_BYTES_MAX: usize = 300;

/// A cut token may end inside a character's bits: the length field reports that better.
const ENGINE: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// An invitation to join a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The authority whose certificates the joining machine shall believe.
    pub authority: AuthorityFingerprint,
    /// Proves to the cluster that its operator sent the machine.
    pub secret: [u8; 16],
    /// `host:port` of the node to ask, at most 300 bytes.
    pub address: String,
}

/// Why a text is no usable token.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TokenError {
    /// The text does not begin like a token.
    #[error("this is no join token: one begins with \"{PREFIX}\"")]
    NotAToken,
    /// A token of another version of the software.
    #[error("this join token is of another version. Make one on a node of this version")]
    OtherVersion,
    /// A character that no token contains.
    #[error("the join token has a wrong character, {character:?}, at position {position}")]
    WrongCharacter {
        /// Counted from one.
        position: usize,
        /// What stands there.
        character: char,
    },
    /// The end is missing.
    #[error("the join token was cut: {have_characters} of {want_characters} characters are here")]
    Cut {
        /// Characters that the text has.
        have_characters: usize,
        /// Characters that the whole token has.
        want_characters: usize,
    },
    /// Something follows the end.
    #[error(
        "the join token is too long: it should end after {want_characters} characters. \
         Was it pasted twice?"
    )]
    TooLong {
        /// Characters that the whole token has.
        want_characters: usize,
    },
    /// The checksum differs.
    #[error("the join token was mistyped: its checksum differs. Copy it again")]
    Mistyped,
}

impl JoinToken {
    /// The token's text. Panics if the address is longer than 300 bytes: no host has one.
    pub fn encode(&self) -> String {
        assert!(
            self.address.len() <= ADDRESS_BYTES_MAX,
            "no address is as long as this one"
        );
        let len = u16::try_from(FIXED_BYTES + self.address.len()).expect("checked above");
        let mut bytes = Vec::with_capacity(usize::from(len));
        bytes.put_u8(VERSION);
        bytes.put_u16_le(len);
        bytes.put_slice(&self.authority.0);
        bytes.put_slice(&self.secret);
        bytes.put_slice(self.address.as_bytes());
        bytes.put_u32_le(checksum(&bytes));
        format!("{PREFIX}{}", ENGINE.encode(&bytes))
    }

    /// Reads a token's text; white space around it is ignored.
    pub fn decode(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let body = strip_prefix(text)?;
        let wrong = body.char_indices().find(|(_, character)| {
            !character.is_ascii_alphanumeric() && !['-', '_'].contains(character)
        });
        if let Some((position, character)) = wrong {
            return Err(TokenError::WrongCharacter {
                position: PREFIX.len() + position + 1,
                character,
            });
        }
        // One character left over carries less than a byte.
        let whole = if body.len() % 4 == 1 {
            body.len() - 1
        } else {
            body.len()
        };
        let bytes = ENGINE
            .decode(&body[..whole])
            .map_err(|_| TokenError::Mistyped)?;
        let characters = |len: usize| PREFIX.len() + base64::encoded_len(len, false).unwrap_or(0);
        let cut = |want: usize| TokenError::Cut {
            have_characters: text.len(),
            want_characters: characters(want),
        };
        let mut fields = &bytes[..];
        if fields.len() < 3 {
            return Err(cut(FIXED_BYTES));
        }
        if fields.get_u8() != VERSION {
            return Err(TokenError::Mistyped);
        }
        let len = usize::from(fields.get_u16_le());
        if !(FIXED_BYTES..=FIXED_BYTES + ADDRESS_BYTES_MAX).contains(&len) {
            return Err(TokenError::Mistyped);
        }
        if text.len() < characters(len) {
            return Err(cut(len));
        }
        if text.len() > characters(len) {
            return Err(TokenError::TooLong {
                want_characters: characters(len),
            });
        }
        let (content, mut end) = bytes.split_at(len - 4);
        // Trailing bits are not checked by the decoder, so the text is compared as well.
        if end.get_u32_le() != checksum(content) || ENGINE.encode(&bytes) != body {
            return Err(TokenError::Mistyped);
        }
        let mut fields = &content[3..];
        let mut authority = AuthorityFingerprint([0; 32]);
        fields.copy_to_slice(&mut authority.0);
        let mut secret = [0; 16];
        fields.copy_to_slice(&mut secret);
        let address = String::from_utf8(fields.to_vec()).map_err(|_| TokenError::Mistyped)?;
        Ok(Self {
            authority,
            secret,
            address,
        })
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        Self::decode(text)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "JoinToken(for {})", self.address)
    }
}

fn strip_prefix(text: &str) -> Result<&str, TokenError> {
    if let Some(body) = text.strip_prefix(PREFIX) {
        return Ok(body);
    }
    let other_version = text
        .strip_prefix(PREFIX.trim_end_matches("1."))
        .and_then(|rest| rest.split_once('.'))
        .is_some_and(|(version, _)| version.parse::<u32>().is_ok());
    Err(if other_version {
        TokenError::OtherVersion
    } else {
        TokenError::NotAToken
    })
}

fn checksum(bytes: &[u8]) -> u32 {
    u32::try_from(crc_fast::checksum(Crc32IsoHdlc, bytes)).expect("a CRC-32 has 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            authority: AuthorityFingerprint([0x5a; 32]),
            secret: *b"sixteen  secrets",
            address: "[fd00::11]:7420".into(),
        }
    }

    /// The golden text of version 1.
    const TEXT: &str = "holdfast1.AUYAWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpzaXh0ZWVuICBz\
        ZWNyZXRzW2ZkMDA6OjExXTo3NDIww5jGIQ";

    #[test]
    fn version_1_is_what_it_was() {
        assert_eq!(token().encode(), TEXT);
        assert_eq!(JoinToken::decode(&format!(" {TEXT}\n")), Ok(token()));
    }

    #[test]
    fn a_cut_token_says_how_much_is_missing() {
        for have_characters in PREFIX.len()..TEXT.len() {
            let cut = JoinToken::decode(&TEXT[..have_characters]);
            let Err(TokenError::Cut {
                have_characters: have,
                want_characters,
            }) = cut
            else {
                panic!("{have_characters} characters give {cut:?}");
            };
            assert_eq!(have, have_characters);
            // The length is in the first four characters.
            if have_characters >= PREFIX.len() + 4 {
                assert_eq!(want_characters, TEXT.len());
            }
        }
    }

    #[test]
    fn every_single_mistyped_character_is_found() {
        for position in 0..TEXT.len() {
            for typed in ['A', 'q', '7', '_', '%', 'ä'] {
                let mut characters: Vec<char> = TEXT.chars().collect();
                if characters[position] == typed {
                    continue;
                }
                characters[position] = typed;
                let text: String = characters.into_iter().collect();
                let refused = JoinToken::decode(&text).expect_err(&text);
                if position >= PREFIX.len() && !typed.is_ascii_alphanumeric() && typed != '_' {
                    let (position, character) = (position + 1, typed);
                    assert_eq!(
                        refused,
                        TokenError::WrongCharacter {
                            position,
                            character
                        }
                    );
                }
            }
        }
    }

    #[test]
    fn other_texts_are_told_apart() {
        assert_eq!(JoinToken::decode("hello"), Err(TokenError::NotAToken));
        assert_eq!(
            JoinToken::decode("holdfast2.AAAA"),
            Err(TokenError::OtherVersion)
        );
        let twice = format!("{TEXT}{}", &TEXT[PREFIX.len()..]);
        let want_characters = TEXT.len();
        assert_eq!(
            JoinToken::decode(&twice),
            Err(TokenError::TooLong { want_characters })
        );
    }

    #[test]
    fn the_secret_is_not_printed() {
        assert_eq!(format!("{:?}", token()), "JoinToken(for [fd00::11]:7420)");
    }
}
