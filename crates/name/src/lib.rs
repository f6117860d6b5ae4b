//! iSCSI names (RFC 7143 4.2.7): what is one, and the one form in which it is compared.
//!
//! A host may spell a name in any case and any Unicode normalization; it stays the same name. An
//! [`IscsiName`] holds the form that RFC 3722 prescribes for comparing, so two of them are equal
//! byte by byte exactly if they are the same name. What always holds for one:
//!
//! * preparing it again changes nothing;
//! * its only ASCII characters are `a-z`, `0-9`, `-`, `.` and `:`;
//! * it has at most [`NAME_BYTES_MAX`] bytes and one of the three formats.
//!
//! A name from outside becomes an `IscsiName` where it arrives: at the login, in SendTargets, in a
//! TransportID, in an access list. Names that were stored before there was this form go through
//! [`prepare_stored`].
//!
//! The profile of RFC 3722 is Nameprep (RFC 3491) with more characters prohibited, so the tables
//! and the steps are those of the `stringprep` crate. They are the tables of Unicode 3.2: what has
//! been assigned since is refused, and a name means the same to every version of this program.
#![forbid(unsafe_code)]

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::str::FromStr;

use stringprep::tables;
use thiserror::Error;

/// Longest iSCSI name, in bytes of UTF-8 (RFC 7143 4.2.7.1).
pub const NAME_BYTES_MAX: usize = 223;

/// An iSCSI name, prepared for comparing. See the crate's header.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IscsiName(Rc<str>);

/// Why a text is no iSCSI name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// It is longer than [`NAME_BYTES_MAX`].
    #[error("an iSCSI name has at most {NAME_BYTES_MAX} bytes")]
    TooLong,
    /// A character that names must not have, or an order of characters that they must not have.
    #[error(
        "an iSCSI name has no spaces, and of the ASCII characters only letters, digits, \
         '-', '.' and ':'"
    )]
    Prohibited,
    /// None of the three formats.
    #[error(
        "an iSCSI name is iqn.YYYY-MM.DOMAIN[:ANYTHING], eui. and 16 hexadecimal digits, or naa. \
         and 16 or 32"
    )]
    Format,
}

impl IscsiName {
    /// The name in the form for comparing.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        // Most names are prepared already.
        if !text.bytes().all(is_prepared_byte) {
            return Self::checked(&prepare(text)?);
        }
        Self::checked(text)
    }

    fn checked(prepared: &str) -> Result<Self, NameError> {
        if prepared.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        if !has_format(prepared) {
            return Err(NameError::Format);
        }
        Ok(Self(prepared.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as shared text.
    pub fn shared(&self) -> Rc<str> {
        self.0.clone()
    }
}

/// The form for comparing of a name that was stored when names were not checked. What is no name
/// stays as it is: then it can still be shown, and taken away.
pub fn prepare_stored(text: &str) -> Rc<str> {
    IscsiName::new(text).map_or_else(|_| text.into(), |name| name.0)
}

const fn is_prepared_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b':')
}

/// RFC 3722 sections 3 to 6.
fn prepare(text: &str) -> Result<String, NameError> {
    // Newer tables of normalization could turn a character that Unicode 3.2 did not have into
    // some that it had.
    if text.contains(tables::unassigned_code_point) {
        return Err(NameError::Prohibited);
    }
    let prepared = stringprep::nameprep(text).map_err(|_| NameError::Prohibited)?;
    // Section 6.2; the ideographic full stop is prohibited too.
    let prohibited = |c: char| match u8::try_from(c) {
        Ok(byte) if byte.is_ascii() => !is_prepared_byte(byte),
        Ok(_) | Err(_) => c == '\u{3002}',
    };
    if prepared.contains(prohibited) {
        return Err(NameError::Prohibited);
    }
    Ok(prepared.into_owned())
}

/// RFC 7143 4.2.7.3 to 4.2.7.6.
fn has_format(name: &str) -> bool {
    let is_hexadecimal = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match name.split_at_checked(4) {
        Some(("iqn.", rest)) => has_dated_authority(rest),
        Some(("eui.", digits)) => digits.len() == 16 && is_hexadecimal(digits),
        Some(("naa.", digits)) => matches!(digits.len(), 16 | 32) && is_hexadecimal(digits),
        Some(_) | None => false,
    }
}

/// `YYYY-MM.` and the reversed domain name of the naming authority, which begins with neither a
/// dot nor a colon.
fn has_dated_authority(text: &str) -> bool {
    let digits =
        |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some((date, authority)) = text.split_once('.') else {
        return false;
    };
    let dated = date.split_once('-').is_some_and(|(year, month)| {
        digits(year, 4) && digits(month, 2) && ("01"..="12").contains(&month)
    });
    dated && !authority.is_empty() && !authority.starts_with(['.', ':'])
}

impl FromStr for IscsiName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl Deref for IscsiName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for IscsiName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IscsiName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for IscsiName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> String {
        IscsiName::new(text).unwrap().to_string()
    }

    #[test]
    fn every_spelling_of_a_name_is_the_same_name() {
        for spelling in [
            "iqn.2026-11.io.holdfast:db",
            "IQN.2026-11.IO.HOLDFAST:DB",
            "Iqn.2026-11.io.Holdfast:Db",
            // A soft hyphen and a zero-width joiner are mapped to nothing, full-width letters and
            // the Kelvin-like compatibility forms to their plain ones.
            "iqn.2026-11.io.hold\u{ad}fast:d\u{200d}b",
            "iqn.2026-11.io.holdfast:\u{ff24}\u{ff42}",
        ] {
            assert_eq!(name(spelling), "iqn.2026-11.io.holdfast:db", "{spelling:?}");
        }
        assert_eq!(name("eui.02004567A425678D"), "eui.02004567a425678d");
        assert_eq!(name("NAA.52004567BA64678D"), "naa.52004567ba64678d");
    }

    #[test]
    fn names_beyond_ascii_are_folded_and_composed() {
        for spelling in [
            "iqn.2026-11.example:z\u{fc}rich",
            "iqn.2026-11.example:Z\u{dc}RICH",
            "iqn.2026-11.example:zu\u{308}rich",
        ] {
            let expected = "iqn.2026-11.example:z\u{fc}rich";
            assert_eq!(name(spelling), expected, "{spelling:?}");
        }
        assert_eq!(
            name("iqn.2026-11.example:stra\u{df}e"),
            "iqn.2026-11.example:strasse"
        );
        // Final and other sigma are one letter.
        let sigma = |text: &str| name(&format!("iqn.2026-11.example:{text}"));
        assert_eq!(sigma("\u{3a3}"), sigma("\u{3c2}"));
    }

    #[test]
    fn characters_that_rfc_3722_prohibits_are_refused() {
        let ascii = (0..=0x7f_u8).map(char::from);
        let prohibited = ascii.filter(|c| !c.is_ascii_alphanumeric() && !"-.:".contains(*c));
        let beyond = [
            '\u{a0}',
            '\u{3002}',
            '\u{85}',
            '\u{e000}',
            '\u{fffd}',
            '\u{200e}',
            '\u{e0001}',
            // Right to left beside left to right; assigned after Unicode 3.2.
            '\u{5d0}',
            '\u{1f100}',
            '\u{221}',
            '\u{1f600}',
        ];
        for c in prohibited.chain(beyond) {
            let text = format!("iqn.2026-11.example:a{c}b");
            assert_eq!(IscsiName::new(&text), Err(NameError::Prohibited), "{c:?}");
        }
    }

    #[test]
    fn texts_of_no_format_are_refused() {
        for text in [
            "",
            "db",
            "iqn",
            "iqn.",
            "iqn.db",
            "iqn.2026.example",
            "iqn.2026-1.example",
            "iqn.2026-13.example",
            "iqn.2026-00.example",
            "iqn.26-11.example",
            "iqn.2026-11",
            "iqn.2026-11.",
            "iqn.2026-11.:db",
            "iqn:2026-11.example",
            "eui.02004567a425678",
            "eui.02004567a425678d0",
            "eui.02004567a425678g",
            "naa.52004567ba64678d5",
            "naa.",
            "x-iqn.2026-11.example",
        ] {
            assert_eq!(IscsiName::new(text), Err(NameError::Format), "{text:?}");
        }
        assert_eq!(name("naa.62004567ba64678d0123456789abcdef").len(), 36);
        assert_eq!(name("iqn.2001-04.example"), "iqn.2001-04.example");
    }

    #[test]
    fn the_longest_name_has_223_bytes_before_and_after() {
        let of = |bytes: usize| format!("{:a<bytes$}", "iqn.2026-11.example:");
        assert!(IscsiName::new(&of(223)).is_ok());
        assert_eq!(IscsiName::new(&of(224)), Err(NameError::TooLong));
        // One character of three bytes that becomes eight: rad, a slash, s2.
        let grows = format!("{}\u{33ae}", of(219));
        assert_eq!(IscsiName::new(&grows), Err(NameError::TooLong));
    }

    #[test]
    fn what_is_no_name_is_kept_where_it_was_stored() {
        assert_eq!(
            &*prepare_stored("iqn.2020-01.test:HostX"),
            "iqn.2020-01.test:hostx"
        );
        assert_eq!(
            &*prepare_stored("iqn.2020-01.test:Host_X"),
            "iqn.2020-01.test:Host_X"
        );
    }

    proptest! {
        #[test]
        fn preparing_twice_is_preparing_once(tail in "\\PC{0,40}") {
            if let Ok(name) = IscsiName::new(&format!("iqn.2026-11.example:{tail}")) {
                prop_assert_eq!(IscsiName::new(&name), Ok(name.clone()));
                prop_assert!(name.bytes().all(|byte| !byte.is_ascii() || is_prepared_byte(byte)));
            }
        }

        #[test]
        fn any_text_is_a_name_or_refused(text in "\\PC*") {
            let _ = IscsiName::new(&text);
        }
    }
}
