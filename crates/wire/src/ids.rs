//! The numbers that name things between nodes.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// A volume's number: given once by the config group, never reused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct VolumeId(pub u64);

/// A view: the config group's counter of cluster states. A volume's view is the one in which
/// its owner took office, and fences every earlier owner.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct View(pub u64);

/// Position of a record in its slice's stream: 1, 2, 3, … without gaps on one copy.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The following position.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// One slice of one volume; with a node, it names one copy.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct SliceKey {
    /// The volume.
    pub volume: u64,
    /// Index of the slice within the volume, from zero.
    pub slice: u32,
}

impl SliceKey {
    /// All keys that slices of a volume may have.
    pub fn all_of(volume: u64) -> RangeInclusive<Self> {
        let key = |slice| Self { volume, slice };
        key(0)..=key(u32::MAX)
    }

    /// The key behind this one; `None` if there is none.
    pub fn next(self) -> Option<Self> {
        let Self { volume, slice } = self;
        match slice.checked_add(1) {
            Some(slice) => Some(Self { volume, slice }),
            None => volume
                .checked_add(1)
                .map(|volume| Self { volume, slice: 0 }),
        }
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

impl fmt::Display for View {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

impl fmt::Display for SliceKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.volume, self.slice)
    }
}
