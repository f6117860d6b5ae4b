//! The structures of a store as rows.
//!
//! Tested with the whole store: `tests/inspect.rs`.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::headers::Page;
use super::{Inspection, JournalImage};
use crate::facts::{FactsState, Scope};
use crate::journal::RING_AT;
use crate::journal::item::Kind;
use crate::record::{CopyState, SliceKey};

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    /// Header pages of the journal, copies of the facts, superblocks.
    Header,
    /// Every item in the journal.
    Journal,
    /// Every fact of the block map.
    Map,
    /// Every segment.
    Segments,
    /// Promises, copies, voids, removals.
    Facts,
    /// Every intact entry of the manifest, and the runs it names.
    Manifest,
}

/// Which rows are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Only of this volume.
    pub volume: Option<u64>,
    /// Only of this slice of it.
    pub slice: Option<u32>,
    /// Only what speaks of this block.
    pub block: Option<u32>,
    /// Only this segment.
    pub segment: Option<u32>,
    /// Most rows; zero is all.
    pub limit: usize,
}

impl Filter {
    pub(crate) fn takes(&self, slice: SliceKey) -> bool {
        self.volume.is_none_or(|volume| volume == slice.volume)
            && self.slice.is_none_or(|number| number == slice.slice)
    }
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Cell {
    /// A number.
    Number(u64),
    /// A word or more.
    Text(String),
    /// Yes or no.
    Flag(bool),
    /// Does not apply.
    Nothing,
}

impl Cell {
    pub(crate) fn number(value: u32) -> Self {
        Self::Number(u64::from(value))
    }

    pub(crate) fn word(word: &str) -> Self {
        Self::Text(word.to_owned())
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(formatter, "{number}"),
            Self::Text(text) => formatter.write_str(text),
            Self::Flag(true) => formatter.write_str("yes"),
            Self::Flag(false) => formatter.write_str("no"),
            Self::Nothing => formatter.write_str("-"),
        }
    }
}

/// Rows of one structure.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Names of the columns.
    pub columns: Vec<&'static str>,
    /// The rows, each as long as `columns`.
    pub rows: Vec<Vec<Cell>>,
    /// Whether there are more than the limit let through.
    pub cut: bool,
    limit: usize,
}

impl Listing {
    fn new(columns: &[&'static str], filter: &Filter) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
            cut: false,
            limit: filter.limit,
        }
    }

    pub(crate) fn add(&mut self, row: Vec<Cell>) {
        debug_assert_eq!(row.len(), self.columns.len());
        if self.limit == 0 || self.rows.len() < self.limit {
            self.rows.push(row);
        } else {
            self.cut = true;
        }
    }

    /// Whether further rows would be cut.
    pub(crate) fn is_full(&self) -> bool {
        self.cut
    }
}

/// A row with the names of its columns.
struct Named<'a>(&'a [&'static str], &'a [Cell]);

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, cell) in self.0.iter().zip(self.1) {
            map.serialize_entry(name, cell)?;
        }
        map.end()
    }
}

impl Serialize for Listing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.rows.iter().map(|row| Named(&self.columns, row)))
    }
}

impl Inspection {
    /// Lists one structure. What cannot be read is left out: [`Inspection::check`] tells of it.
    pub async fn dump(&self, what: Structure, filter: &Filter) -> Listing {
        let columns: &[&'static str] = match what {
            Structure::Header => &["area", "offset", "copy", "state", "content"],
            Structure::Journal => &[
                "lsn", "offset", "kind", "volume", "slice", "view", "seq", "stable", "block",
                "blocks", "again", "lost",
            ],
            Structure::Map => &[
                "volume", "slice", "block", "blocks", "state", "seq", "view", "checksum",
                "segment", "epoch", "offset", "run",
            ],
            Structure::Segments => &[
                "segment", "kind", "epoch", "used", "live", "sealed", "written", "offset",
            ],
            Structure::Facts => &["fact", "volume", "slice", "value"],
            Structure::Manifest => &["offset", "kind", "generation", "number", "bytes", "content"],
        };
        let mut listing = Listing::new(columns, filter);
        match what {
            Structure::Header => self.list_headers(&mut listing).await,
            Structure::Journal => {
                if let Some(image) = self.journal_image().await {
                    list_journal(&image, filter, &mut listing);
                }
            }
            Structure::Facts => list_facts(&self.state(), filter, &mut listing),
            Structure::Map => {
                if let Some(home) = self.home_image().await.home {
                    home.list_map(filter, &mut listing).await;
                }
            }
            Structure::Segments => {
                if let Some(home) = self.home_image().await.home {
                    home.list_segments(filter, &mut listing);
                }
            }
            Structure::Manifest => {
                let image = self.home_image().await;
                image.manifest.list(&mut listing);
                if let Some(home) = image.home {
                    home.list_runs(&mut listing);
                }
            }
        }
        listing
    }

    async fn list_headers(&self, listing: &mut Listing) {
        for (page, copy) in self.headers.journal.iter().zip(0..) {
            let content = match page {
                Page::Good(header) => format!("{header:?}"),
                Page::Zero | Page::Bad(_) | Page::Refused(_) => String::new(),
            };
            listing.add(header_row(
                "journal",
                copy * 4096,
                copy,
                page.words(),
                content,
            ));
        }
        let (state, content) = self.headers.facts_words();
        listing.add(header_row("facts", 0, 0, state, content));
        let manifest = self.home_image().await.manifest;
        for (superblock, copy) in manifest.superblocks.iter().zip(0..) {
            let (state, content) = superblock.words(&manifest);
            listing.add(header_row("home", copy * 4096, copy, state, content));
        }
    }
}

fn header_row(area: &str, at: u64, copy: u64, state: String, content: String) -> Vec<Cell> {
    vec![
        Cell::word(area),
        Cell::Number(at),
        Cell::Number(copy),
        Cell::Text(state),
        Cell::Text(content),
    ]
}

fn list_journal(image: &JournalImage, filter: &Filter, listing: &mut Listing) {
    let touches = |first: u32, blocks: u32| {
        let end = first.saturating_add(blocks);
        filter
            .block
            .is_none_or(|block| (first..end).contains(&block))
    };
    for batch in &image.scanned.batches {
        for item in &batch.items {
            if !filter.takes(item.slice) || !touches(item.first_block, item.blocks) {
                continue;
            }
            let kind = match item.kind {
                Kind::Write => "write",
                Kind::Zero => "zero",
                Kind::Nothing => "nothing",
                Kind::CopyWrite => "copied write",
                Kind::CopyZero => "copied zero",
                Kind::CopyLost => "lost in every copy",
                Kind::Stable => "stable",
            };
            let lost = item.lost.iter().filter(|lost| **lost).count();
            listing.add(vec![
                Cell::Number(batch.lsn),
                Cell::Number(RING_AT + batch.position % image.header.ring_bytes.max(1)),
                Cell::word(kind),
                Cell::Number(item.slice.volume),
                Cell::number(item.slice.slice),
                Cell::Number(item.view.0),
                Cell::Number(item.seq.0),
                Cell::Number(item.stable.0),
                Cell::number(item.first_block),
                Cell::number(item.blocks),
                Cell::Flag(item.relocated),
                Cell::Number(lost as u64),
            ]);
        }
    }
}

fn list_facts(state: &FactsState, filter: &Filter, listing: &mut Listing) {
    let mut add = |fact: &str, volume: u64, slice: Option<u32>, value: String| {
        let wanted = filter.volume.is_none_or(|wanted| wanted == volume)
            && filter.slice.is_none_or(|wanted| slice == Some(wanted));
        if wanted {
            listing.add(vec![
                Cell::word(fact),
                Cell::Number(volume),
                slice.map_or(Cell::Nothing, Cell::number),
                Cell::Text(value),
            ]);
        }
    };
    for (volume, view) in state.promises_behind(None) {
        add("promise", volume, None, format!("view {}", view.0));
    }
    for (key, facts) in state.slices_in(..) {
        let copy = match facts.copy {
            CopyState::Absent => "absent".to_owned(),
            CopyState::InSync => "in sync".to_owned(),
            CopyState::Joining { base } => format!("joining, complete through {}", base.0),
        };
        let suspect = match facts.suspect {
            Some(point) => format!(", suspect above {}", point.0),
            None => String::new(),
        };
        let value = format!(
            "{copy}, stable {}, at home through {}{suspect}",
            facts.stable.0, facts.destaged.0
        );
        add("copy", key.volume, Some(key.slice), value);
    }
    for void in state.voids_behind(None) {
        let value = format!(
            "above {} before batch {}",
            void.keep_through.0, void.before_lsn
        );
        add("void", void.slice.volume, Some(void.slice.slice), value);
    }
    for removal in state.removals_behind(None) {
        let cleared = if removal.cleared { "done" } else { "under way" };
        let value = format!("before batch {}, {cleared}", removal.before_lsn);
        let slice = match removal.scope {
            Scope::Volume(_) => None,
            Scope::Slice(key) => Some(key.slice),
        };
        add("removal", removal.scope.volume(), slice, value);
    }
}
