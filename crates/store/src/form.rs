//! What proves that a structure on disk may be read: it is one, its format is known here, and
//! this store wrote it. The same answer for every area.
//!
//! | magic | checksum | version | identity | answer |
//! |---|---|---|---|---|
//! | other | any | any | any | damage, or nothing was ever here |
//! | right | wrong | retired | any | error: another version (its checksum stood elsewhere) |
//! | right | wrong | any other | any | damage |
//! | right | right | unknown | any | error: another version |
//! | right | right | known | other | error: another store |
//! | right | right | known | own | read it |

use std::ops::RangeInclusive;

use crate::error::StoreError;

/// One area's form: what its structures begin with.
pub(crate) struct Form {
    /// Name of the area, for errors.
    pub(crate) area: &'static str,
    pub(crate) magic: u64,
    /// Formats that this version reads.
    pub(crate) known: RangeInclusive<u32>,
    /// Formats that it recognises although their checksum cannot be verified here.
    pub(crate) retired: &'static [u32],
}

/// What a structure says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) magic: u64,
    pub(crate) version: u32,
    pub(crate) identity: [u8; 16],
    /// Whether its checksum matches its bytes.
    pub(crate) intact: bool,
}

impl Form {
    /// Whether the structure may be read; `false` is damage.
    ///
    /// # Errors
    ///
    /// `Version` and `Foreign`: it is intact and must not be used.
    pub(crate) fn admits(&self, identity: [u8; 16], claim: Claim) -> Result<bool, StoreError> {
        let retired = self.retired.contains(&claim.version);
        if claim.magic != self.magic || !(claim.intact || retired) {
            return Ok(false);
        }
        if retired || !self.known.contains(&claim.version) {
            return Err(StoreError::Version {
                area: self.area,
                found: claim.version,
                supported: *self.known.end(),
            });
        }
        if claim.identity != identity {
            return Err(StoreError::Foreign {
                area: self.area,
                what: "identity",
            });
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: Form = Form {
        area: "area",
        magic: 7,
        known: 2..=3,
        retired: &[1],
    };
    const GOOD: Claim = Claim {
        magic: 7,
        version: 2,
        identity: [1; 16],
        intact: true,
    };

    fn version(found: u32) -> Result<bool, StoreError> {
        Err(StoreError::Version {
            area: "area",
            found,
            supported: 3,
        })
    }

    #[test]
    fn every_case_of_the_table_has_its_answer() {
        let foreign = Err(StoreError::Foreign {
            area: "area",
            what: "identity",
        });
        let torn = Claim {
            intact: false,
            ..GOOD
        };
        let claim = |version| Claim { version, ..GOOD };
        let cases = [
            (GOOD, Ok(true)),
            (claim(3), Ok(true)),
            (Claim { magic: 8, ..GOOD }, Ok(false)),
            (torn, Ok(false)),
            (Claim { version: 4, ..torn }, Ok(false)),
            (Claim { version: 1, ..torn }, version(1)),
            (claim(1), version(1)),
            (claim(4), version(4)),
            (claim(0), version(0)),
            (
                Claim {
                    identity: [2; 16],
                    ..GOOD
                },
                foreign,
            ),
        ];
        for (claim, answer) in cases {
            assert_eq!(FORM.admits([1; 16], claim), answer, "{claim:?}");
        }
    }
}
