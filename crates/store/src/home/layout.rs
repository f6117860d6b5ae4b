//! Which parts of the area are what: a pure state machine.
//!
//! The area is cut into segments. A segment is free, or it is filled from its beginning to its
//! end, with groups of blocks or with pages of the map, and freed as a whole. Invariants:
//!
//! * `live` of a data segment counts the facts, in memory and in tables, whose place lies in
//!   this life of it; that of a map segment the pages of runs that are still in use;
//! * a segment is freed only when nothing that is durable refers to it;
//! * every life of a segment has an epoch of its own.
//!
//! Changes are applied when they are durable in the [manifest](super::manifest), there as here.

use std::collections::BTreeMap;

use holdfast_wire::SliceKey;
use serde::{Deserialize, Serialize};

use super::fact::ExtentKey;
use super::segments::Segments;

/// What a segment is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Blocks as they come out of the journal.
    Data,
    /// Blocks that outlived the segment they were in: likely to stay.
    Cold,
    /// Pages of runs.
    Map,
}

/// One segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Segment {
    /// `None` is free.
    pub(super) kind: Option<Kind>,
    /// Of this life, or of the last one.
    pub(super) epoch: u32,
    /// Pages filled.
    pub(super) used: u32,
    /// Pages that something refers to.
    pub(super) live: u32,
    /// Nothing is added any more.
    pub(super) sealed: bool,
    /// Number of the manifest's edit that filled it last: its age.
    pub(super) written: u64,
}

/// Pages of one segment that belong to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) segment: u32,
    /// Within the segment.
    pub(super) first: u32,
    pub(super) pages: u32,
}

/// Facts of one round, sorted: what memory knows and tables do not yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Delta {
    pub(super) run: u64,
    pub(super) pieces: Vec<Piece>,
    pub(super) leaves: u32,
    /// What it speaks of: what is in doubt if it cannot be read.
    pub(super) slices: Vec<SliceKey>,
}

/// A part of the sorted map, for the keys from its own up to that of the next table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Table {
    pub(super) run: u64,
    pub(super) pieces: Vec<Piece>,
    /// Pages of leaves; those of the directory follow.
    pub(super) leaf_pages: u32,
    pub(super) leaves: u32,
    pub(super) slices: Vec<SliceKey>,
    /// Deltas up to here have nothing to add to it.
    pub(super) merged_through: u64,
}

/// Facts of `volume` in deltas up to `through` are void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cleared {
    pub(super) volume: u64,
    pub(super) through: u64,
}

/// One change; an edit is a list of them that take effect together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Change {
    /// A free segment begins a life.
    Opened {
        segment: u32,
        kind: Kind,
        epoch: u32,
    },
    /// It is filled up to here.
    Filled { segment: u32, used: u32 },
    /// Nothing is added to it any more.
    Sealed { segment: u32 },
    /// So many facts or pages refer to it now.
    Live { segment: u32, live: u32 },
    /// It is free.
    Freed { segment: u32 },
    /// A delta counts from now on.
    DeltaAdded(Delta),
    /// Deltas up to this run are no longer needed.
    DeltasDropped { through: u64 },
    /// This one cannot be read.
    DeltaLost { run: u64 },
    /// The table that begins at this key is gone.
    TableRemoved(ExtentKey),
    /// A table begins at this key.
    TableAdded(ExtentKey, Table),
    /// A volume's facts in deltas are void.
    VolumeCleared(Cleared),
    /// Facts of slices in deltas up to this run are void.
    SlicesCleared { slices: Vec<SliceKey>, through: u64 },
}

/// The whole state.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Layout {
    pub(super) segments: Segments,
    pub(super) deltas: Vec<Delta>,
    pub(super) tables: BTreeMap<ExtentKey, Table>,
    pub(super) cleared: Vec<Cleared>,
    /// Runs have numbers below this one.
    pub(super) next_run: u64,
    /// How many segments hold blocks.
    pub(super) data_segments: u64,
    /// How many hold the map.
    pub(super) map_segments: u64,
    /// Facts of a slice in deltas up to a run are void. Last: format 1 ends before it.
    pub(super) cleared_slices: BTreeMap<SliceKey, u64>,
}

/// What a snapshot of format 1 holds: all but the last field.
#[derive(Deserialize)]
struct FirstLayout {
    segments: Segments,
    deltas: Vec<Delta>,
    tables: BTreeMap<ExtentKey, Table>,
    cleared: Vec<Cleared>,
    next_run: u64,
    data_segments: u64,
    map_segments: u64,
}

impl Layout {
    /// Reads a snapshot's body of this format.
    pub(super) fn decode(version: u32, body: &[u8]) -> Option<Self> {
        if version > 1 {
            return postcard::from_bytes(body).ok();
        }
        let first: FirstLayout = postcard::from_bytes(body).ok()?;
        Some(Self {
            segments: first.segments,
            deltas: first.deltas,
            tables: first.tables,
            cleared: first.cleared,
            next_run: first.next_run,
            data_segments: first.data_segments,
            map_segments: first.map_segments,
            cleared_slices: BTreeMap::new(),
        })
    }

    /// Applies an edit; `edit` is its number. `None` if it does not fit: then this is not the
    /// state that it was made for.
    pub(super) fn apply(&mut self, edit: u64, changes: &[Change]) -> Option<()> {
        for change in changes {
            match change {
                Change::Opened {
                    segment,
                    kind,
                    epoch,
                } => {
                    if self.segment(*segment).kind.is_some() {
                        return None;
                    }
                    match kind {
                        Kind::Data | Kind::Cold => self.data_segments += 1,
                        Kind::Map => self.map_segments += 1,
                    }
                    let opened = Segment {
                        kind: Some(*kind),
                        epoch: *epoch,
                        written: edit,
                        ..Segment::default()
                    };
                    self.segments.put(*segment, opened);
                }
                Change::Filled { segment, used } => {
                    self.segments.change(*segment, |found| {
                        found.used = *used;
                        found.written = edit;
                    })?;
                }
                Change::Sealed { segment } => {
                    self.segments
                        .change(*segment, |found| found.sealed = true)?;
                }
                Change::Live { segment, live } => {
                    self.segments.change(*segment, |found| found.live = *live)?;
                }
                Change::Freed { segment } => {
                    let found = self.segment(*segment);
                    let kind = found.kind?;
                    let freed = Segment {
                        epoch: found.epoch,
                        ..Segment::default()
                    };
                    self.segments.put(*segment, freed);
                    match kind {
                        Kind::Data | Kind::Cold => self.data_segments -= 1,
                        Kind::Map => self.map_segments -= 1,
                    }
                }
                Change::DeltaAdded(delta) => {
                    self.next_run = self.next_run.max(delta.run + 1);
                    self.deltas.push(delta.clone());
                }
                Change::DeltasDropped { through } => {
                    self.deltas.retain(|delta| delta.run > *through);
                    let oldest = self.deltas.first().map_or(u64::MAX, |delta| delta.run);
                    self.cleared.retain(|cleared| cleared.through >= oldest);
                    self.cleared_slices.retain(|_, through| *through >= oldest);
                }
                Change::DeltaLost { run } => self.deltas.retain(|delta| delta.run != *run),
                Change::TableRemoved(key) => {
                    self.tables.remove(key)?;
                }
                Change::TableAdded(key, table) => {
                    self.next_run = self.next_run.max(table.run + 1);
                    if self.tables.insert(*key, table.clone()).is_some() {
                        return None;
                    }
                }
                Change::VolumeCleared(cleared) => self.cleared.push(*cleared),
                Change::SlicesCleared { slices, through } => {
                    let cleared = slices.iter().map(|slice| (*slice, *through));
                    self.cleared_slices.extend(cleared);
                }
            }
        }
        Some(())
    }

    pub(super) fn segment(&self, segment: u32) -> Segment {
        self.segments.get(segment)
    }

    /// Whether facts of `slice` in run `delta` are void.
    pub(super) fn is_cleared(&self, slice: SliceKey, delta: u64) -> bool {
        let through = self.cleared_slices.get(&slice);
        through.is_some_and(|through| delta <= *through)
            || self
                .cleared
                .iter()
                .any(|cleared| cleared.volume == slice.volume && delta <= cleared.through)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(volume: u64, slice: u32) -> SliceKey {
        SliceKey { volume, slice }
    }

    fn delta(run: u64) -> Change {
        Change::DeltaAdded(Delta {
            run,
            pieces: Vec::new(),
            leaves: 0,
            slices: Vec::new(),
        })
    }

    fn applied(changes: &[Change]) -> Layout {
        let mut layout = Layout::default();
        layout.apply(1, changes).expect("they fit");
        layout
    }

    #[test]
    fn facts_of_what_was_cleared_are_void_in_the_deltas_of_then_and_not_in_later_ones() {
        let layout = applied(&[
            delta(1),
            Change::VolumeCleared(Cleared {
                volume: 1,
                through: 1,
            }),
            Change::SlicesCleared {
                slices: vec![key(2, 5)],
                through: 1,
            },
        ]);
        assert!(layout.is_cleared(key(1, 9), 1) && layout.is_cleared(key(2, 5), 1));
        assert!(!layout.is_cleared(key(1, 9), 2) && !layout.is_cleared(key(2, 5), 2));
        assert!(!layout.is_cleared(key(2, 4), 1));
    }

    #[test]
    fn nothing_stays_of_clearings_when_the_deltas_are_gone() {
        let mut layout = applied(&[
            delta(1),
            Change::SlicesCleared {
                slices: vec![key(2, 5)],
                through: 1,
            },
            delta(2),
        ]);
        let dropped = |through| [Change::DeltasDropped { through }];
        layout.apply(2, &dropped(1)).unwrap();
        assert!(layout.cleared_slices.is_empty());
        assert_eq!(layout.deltas.len(), 1);
    }

    #[test]
    fn a_snapshot_of_the_first_format_ends_before_the_cleared_slices() {
        let layout = applied(&[delta(4)]);
        let body = postcard::to_stdvec(&layout).unwrap();
        assert_eq!(Layout::decode(2, &body), Some(layout.clone()));
        // An empty map is one byte.
        let first = &body[..body.len() - 1];
        assert_eq!(Layout::decode(1, first), Some(layout));
        assert_eq!(Layout::decode(2, first), None);
    }

    #[test]
    fn a_segment_that_is_in_use_is_not_opened_and_a_free_one_not_filled() {
        let opened = Change::Opened {
            segment: 3,
            kind: Kind::Data,
            epoch: 1,
        };
        let mut layout = applied(std::slice::from_ref(&opened));
        assert_eq!(layout.data_segments, 1);
        assert_eq!(layout.apply(2, &[opened]), None);
        let filled = Change::Filled {
            segment: 2,
            used: 1,
        };
        assert_eq!(layout.apply(2, &[filled]), None);
    }
}
