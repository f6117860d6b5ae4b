//! Log pages (SPC-4 7.3, SBC-4 6.4): what the unit tells of itself by LOG SENSE. Nothing is counted
//! or saved here, so every parameter is the same whichever of its values is asked for.

use crate::sense::Sense;

/// What LOG SENSE asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSense {
    /// Page code.
    pub page: u8,
    /// Subpage code.
    pub subpage: u8,
    /// The first parameter code to report.
    pub pointer: u16,
}

const SUPPORTED: u8 = 0x00;
const PROVISIONING: u8 = 0x0c;
const EXCEPTIONS: u8 = 0x2f;
/// Subpage that lists subpages.
const ALL_SUBPAGES: u8 = 0xff;

/// A log parameter: its code and its value.
type Parameter = (u16, [u8; 8]);

/// The log page, uncut. `available_percent` is how much of the space is left that the volume's
/// blocks are kept in; a device that does not know has no Logical Block Provisioning page.
pub fn sense(request: LogSense, available_percent: Option<u8>) -> Result<Vec<u8>, Sense> {
    let mut supported = vec![SUPPORTED];
    supported.extend(available_percent.map(|_| PROVISIONING));
    supported.push(EXCEPTIONS);
    match (request.page, request.subpage, available_percent) {
        (SUPPORTED, 0, _) => Ok(page(SUPPORTED, 0, &supported)),
        (SUPPORTED, ALL_SUBPAGES, _) => {
            let mut pairs = vec![SUPPORTED, 0, SUPPORTED, ALL_SUBPAGES];
            pairs.extend(supported[1..].iter().flat_map(|code| [*code, 0]));
            Ok(page(SUPPORTED, ALL_SUBPAGES, &pairs))
        }
        (PROVISIONING, 0, Some(percent)) => {
            /// Available Provisioning Resource Percentage.
            const AVAILABLE: u16 = 3;
            /// SCOPE: other units use the resource too.
            const SHARED: u8 = 2;
            let percent = percent.min(100);
            parameters(request, &[(AVAILABLE, [0, percent, 0, 0, SHARED, 0, 0, 0])])
        }
        (EXCEPTIONS, 0, _) => {
            /// MOST RECENT TEMPERATURE READING: none is available.
            const NO_TEMPERATURE: u8 = 0xff;
            // Additional sense code 00/00: no exception.
            parameters(request, &[(0, [0, 0, NO_TEMPERATURE, 0, 0, 0, 0, 0])])
        }
        (SUPPORTED | PROVISIONING | EXCEPTIONS, subpage, _) if subpage != 0 => {
            Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(3))
        }
        (_, _, _) => Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(2)),
    }
}

/// The parameters from the parameter pointer on, which must not lie beyond the last one.
fn parameters(request: LogSense, all: &[Parameter]) -> Result<Vec<u8>, Sense> {
    /// FORMAT AND LINKING 11b: a binary list, which has no thresholds and does not count.
    const BINARY_LIST: u8 = 0x03;
    let mut body = Vec::new();
    for (code, value) in all.iter().filter(|(code, _)| *code >= request.pointer) {
        body.extend_from_slice(&code.to_be_bytes());
        body.extend_from_slice(&[BINARY_LIST, value.len() as u8]);
        body.extend_from_slice(value);
    }
    if body.is_empty() {
        return Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(5));
    }
    Ok(page(request.page, request.subpage, &body))
}

fn page(code: u8, subpage: u8, body: &[u8]) -> Vec<u8> {
    /// DS: the parameters cannot be saved. Lists of pages have none.
    const NOT_SAVED: u8 = 0x80;
    /// SPF: the subpage code counts.
    const SUBPAGE_FORMAT: u8 = 0x40;
    let mut first = code;
    if code != SUPPORTED {
        first |= NOT_SAVED;
    }
    if subpage != 0 {
        first |= SUBPAGE_FORMAT;
    }
    let length = (body.len() as u16).to_be_bytes();
    let mut bytes = vec![first, subpage, length[0], length[1]];
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(page: u8, subpage: u8, pointer: u16) -> LogSense {
        LogSense {
            page,
            subpage,
            pointer,
        }
    }

    #[test]
    fn every_page_that_is_listed_is_there_and_no_other() {
        for percent in [None, Some(40)] {
            let listed = sense(ask(0, 0, 0), percent).unwrap();
            assert_eq!(usize::from(listed[3]) + 4, listed.len());
            for code in 0..0x40 {
                let answer = sense(ask(code, 0, 0), percent);
                assert_eq!(answer.is_ok(), listed[4..].contains(&code), "{code:02x}");
            }
            let pairs = sense(ask(0, 0xff, 0), percent).unwrap();
            assert_eq!(pairs[..2], [0x40, 0xff]);
            for pair in pairs[4..].chunks(2) {
                assert!(
                    sense(ask(pair[0], pair[1], 0), percent).is_ok(),
                    "{pair:x?}"
                );
            }
        }
        assert_eq!(
            sense(ask(EXCEPTIONS, 1, 0), None),
            Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(3))
        );
    }

    #[test]
    fn provisioning_tells_the_percentage_that_is_left() {
        let bytes = sense(ask(PROVISIONING, 0, 0), Some(40)).unwrap();
        assert_eq!(
            bytes,
            [0x8c, 0, 0, 12, 0, 3, 0x03, 8, 0, 40, 0, 0, 2, 0, 0, 0]
        );
        assert_eq!(sense(ask(PROVISIONING, 0, 3), Some(40)), Ok(bytes));
        assert_eq!(
            sense(ask(PROVISIONING, 0, 4), Some(40)),
            Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(5))
        );
    }
}
