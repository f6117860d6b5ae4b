//! How the area is cut into manifest and segments.
//!
//! Up to 16 TiB segments have at most 8 MiB. Of a larger home they are larger, so that it has two
//! million of them at most: that bounds what memory and manifest hold for each, and 256 TiB are
//! the limit because a larger segment than 128 MiB takes too long to collect. A home that grew
//! keeps the segments that it was made with, and has as many as its manifest can describe.

use holdfast_runtime::PAGE_BYTES;
use serde::{Deserialize, Serialize};

/// Segments that the area is cut into, if their size allows it.
const SEGMENTS_WANTED: u64 = 256;
/// Most segments of a new home.
const SEGMENTS_MAX: u64 = 2 << 20;
const SEGMENT_BYTES_MIN: u64 = 128 << 10;
/// Segments are no larger while there are no more than [`SEGMENTS_MAX`].
const SEGMENT_BYTES_USUAL: u64 = 8 << 20;
/// What is needed of a segment is moved in one go, and every writer of the home waits for it.
const SEGMENT_BYTES_MAX: u64 = 128 << 20;

/// Of a larger area no more is used, in bytes.
pub const HOME_BYTES_MAX: u64 = SEGMENTS_MAX * SEGMENT_BYTES_MAX;
const _: () = assert!(HOME_BYTES_MAX == 256 << 40);

/// Of larger areas formats up to 2 know nothing: they count pages in 32 bits.
const FORMAT_2_BYTES_MAX: u64 = 1 << 44;
const _: () = assert!(FORMAT_2_BYTES_MAX == SEGMENTS_MAX * SEGMENT_BYTES_USUAL);

/// No region is larger.
pub(super) const REGION_BYTES_MAX: u64 = 5 << 28;
/// Smallest region: a snapshot of a small home and a hundred edits.
const REGION_BYTES_MIN: u64 = 512 << 10;
/// Bytes of a region for each segment: its record, and edits about it;
const REGION_BYTES_PER_SEGMENT: u64 = 72;
/// and for each [`SEGMENT_BYTES_USUAL`] of it, or part of that, its share of tables.
const REGION_BYTES_OF_TABLES: u64 = 24;
/// A region is made for so many times the segments of the new home,
const GROWTH: u64 = 4;
/// or for so many if there are [`SEGMENTS_MAX`] of them.
const LARGE_GROWTH: u64 = 2;

/// The format of homes up to 16 TiB.
pub(super) const VERSION: u32 = 2;
/// The format of larger ones, and of those whose segments do not follow the manifest: older
/// programs, which would take their facts for damaged, refuse them.
pub(super) const LARGE_VERSION: u32 = 3;

/// Where things are; fixed when the home is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Geometry {
    pub(super) region_bytes: u64,
    pub(super) segment_pages: u32,
    /// Where the segments begin. Formats up to 2 do not say: behind the manifest.
    pub(super) segments_at: u64,
}

impl Geometry {
    /// For a new area of this size, whose segments begin at `segments_at_min` at least.
    pub(super) fn new(area_bytes: u64, segments_at_min: u64) -> Self {
        let area_bytes = area_bytes.min(HOME_BYTES_MAX);
        let area_bytes = area_bytes.saturating_sub(segments_at_min);
        let wanted = (area_bytes / SEGMENTS_WANTED).max(1).next_power_of_two();
        let usual = wanted.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_USUAL);
        let segment_bytes = usual.max(area_bytes.div_ceil(SEGMENTS_MAX).next_power_of_two());
        let growth = if segment_bytes > SEGMENT_BYTES_USUAL {
            LARGE_GROWTH
        } else {
            GROWTH
        };
        let segments = growth * (area_bytes / segment_bytes);
        let segments = segments.min(HOME_BYTES_MAX / segment_bytes);
        let region = REGION_BYTES_MIN.max(segments * region_bytes_of(segment_bytes));
        let region = region.next_multiple_of(PAGE_BYTES as u64);
        let segment_pages = (segment_bytes / PAGE_BYTES as u64) as u32;
        let behind = Self::behind_manifest(region, segment_pages);
        Self {
            segments_at: behind.segments_at.max(segments_at_min),
            ..behind
        }
    }

    /// With segments that follow the manifest.
    pub(super) fn behind_manifest(region_bytes: u64, segment_pages: u32) -> Self {
        Self {
            region_bytes,
            segment_pages,
            segments_at: 2 * PAGE_BYTES as u64 + 2 * region_bytes,
        }
    }

    /// Reads a superblock's body of this format.
    pub(super) fn decode(version: u32, body: &[u8]) -> Option<Self> {
        if version >= LARGE_VERSION {
            return postcard::from_bytes(body).ok();
        }
        let (region_bytes, segment_pages) = postcard::from_bytes(body).ok()?;
        Some(Self::behind_manifest(region_bytes, segment_pages))
    }

    /// The body of a superblock of this format.
    pub(super) fn encoded(&self, version: u32) -> Vec<u8> {
        let body = match version {
            LARGE_VERSION.. => postcard::to_stdvec(self),
            _ => postcard::to_stdvec(&(self.region_bytes, self.segment_pages)),
        };
        body.expect("plain data has an encoding")
    }

    /// The format of what is written to an area of this size.
    pub(super) fn version(&self, area_bytes: u64) -> u32 {
        let follows = *self == Self::behind_manifest(self.region_bytes, self.segment_pages);
        match follows && area_bytes <= FORMAT_2_BYTES_MAX {
            true => VERSION,
            false => LARGE_VERSION,
        }
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        u64::from(self.segment_pages) * PAGE_BYTES as u64
    }

    pub(super) fn region_at(&self, generation: u64) -> u64 {
        2 * PAGE_BYTES as u64 + (generation % 2) * self.region_bytes
    }

    /// Whole segments in an area of this size, as many as the manifest can describe.
    pub(super) fn segments_in(&self, area_bytes: u64) -> u32 {
        let countable = area_bytes.min(HOME_BYTES_MAX);
        let fitting = countable.saturating_sub(self.segments_at) / self.segment_bytes();
        // With twice as many as it is made for there is room for the edits still: a snapshot of
        // a home that is full takes a third of what is set aside for each segment.
        let described = self.region_bytes / (region_bytes_of(self.segment_bytes()) / 2);
        fitting.min(described) as u32
    }

    /// Bytes of an area of this size that are not used, although whole segments would fit.
    pub(super) fn unused_in(&self, area_bytes: u64) -> u64 {
        let used = u64::from(self.segments_in(area_bytes)) * self.segment_bytes();
        let rest = area_bytes.saturating_sub(self.segments_at + used);
        if rest < self.segment_bytes() { 0 } else { rest }
    }
}

/// Bytes of a region for a segment of this size.
fn region_bytes_of(segment_bytes: u64) -> u64 {
    let shares = segment_bytes.div_ceil(SEGMENT_BYTES_USUAL);
    REGION_BYTES_PER_SEGMENT + REGION_BYTES_OF_TABLES * shares
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const TIB: u64 = 1 << 40;

    fn of(area_bytes: u64) -> (u64, u64, u64) {
        let geometry = Geometry::new(area_bytes, 0);
        let segments = u64::from(geometry.segments_in(area_bytes));
        (geometry.region_bytes, geometry.segment_bytes(), segments)
    }

    #[test]
    fn homes_up_to_16_tib_are_cut_as_they_always_were() {
        assert_eq!(of(6 << 20), (512 << 10, 128 << 10, 39));
        assert_eq!(of(GIB), (512 << 10, 4 << 20, 255));
        assert_eq!(of(64 * GIB), (3 << 20, 8 << 20, 8191));
        assert_eq!(of(16 * TIB), (768 << 20, 8 << 20, (2 << 20) - 193));
    }

    #[test]
    fn a_larger_home_has_larger_segments_and_never_more_than_two_million() {
        for (size, segment) in [
            (17, 16),
            (32, 16),
            (33, 32),
            (64, 32),
            (100, 64),
            (256, 128),
        ] {
            let (region, bytes, segments) = of(size * TIB);
            assert_eq!(bytes, segment << 20, "{size} TiB");
            assert!(segments <= SEGMENTS_MAX && (segments + 200) * bytes > size * TIB - 2 * GIB);
            assert!(
                region < REGION_BYTES_MAX,
                "{size} TiB has regions of {region} bytes"
            );
        }
    }

    #[test]
    fn no_more_of_an_area_is_used_than_the_limit() {
        let at_limit = Geometry::new(HOME_BYTES_MAX, 0);
        assert_eq!(at_limit.unused_in(HOME_BYTES_MAX), 0);
        for beyond in [1, 128 << 20, TIB, u64::MAX - HOME_BYTES_MAX] {
            let area = HOME_BYTES_MAX + beyond;
            let geometry = Geometry::new(area, 0);
            assert_eq!(geometry, at_limit);
            assert_eq!(
                geometry.segments_in(area),
                at_limit.segments_in(HOME_BYTES_MAX)
            );
            let end = geometry.segments_at
                + u64::from(geometry.segments_in(area)) * geometry.segment_bytes();
            assert!(end <= HOME_BYTES_MAX);
            let rest = if area - end < geometry.segment_bytes() {
                0
            } else {
                area - end
            };
            assert_eq!(geometry.unused_in(area), rest);
        }
    }

    #[test]
    fn a_home_grows_as_far_as_its_manifest_describes_and_says_what_is_left_over() {
        let geometry = Geometry::new(TIB, 0);
        for (size, unused) in [(TIB, 0), (4 * TIB, 0), (9 * TIB, TIB)] {
            let found = geometry.unused_in(size);
            // Twice what is promised, less the manifest.
            assert!(found.abs_diff(unused) < GIB, "{size}: {found}");
        }
        let largest = Geometry::new(16 * TIB, 0);
        assert_eq!(largest.unused_in(64 * TIB), 0);
        assert_eq!(largest.segment_bytes(), 8 << 20);
    }

    #[test]
    fn only_homes_that_older_programs_would_misread_are_of_the_newer_format() {
        let geometry = Geometry::new(TIB, 0);
        assert_eq!(geometry.version(16 * TIB), VERSION);
        assert_eq!(geometry.version(16 * TIB + 1), LARGE_VERSION);
        let high = Geometry::new(20 * TIB + (9 << 20), 20 * TIB);
        assert_eq!(
            (high.segments_at, high.segment_bytes()),
            (20 * TIB, 128 << 10)
        );
        assert_eq!(high.version(TIB), LARGE_VERSION);
        for (geometry, version) in [(geometry, VERSION), (high, LARGE_VERSION)] {
            let body = geometry.encoded(version);
            assert_eq!(Geometry::decode(version, &body), Some(geometry));
        }
    }
}
