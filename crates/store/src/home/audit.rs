//! Whether the home's counts are what its map says, for tests: a count that is too low frees a
//! segment that is needed, one that is too high never frees it.
//!
//! A check that tests use: it has none itself.

use std::collections::BTreeMap;

use super::Home;
use super::fact::{ExtentKey, State};

impl Home {
    /// Counts everything anew. The error says what does not add up.
    pub(crate) async fn audit(&self) -> Result<(), String> {
        let mut wanted = self.recount().await;
        self.manifest.with(|layout| {
            let pieces = layout.deltas.iter().flat_map(|delta| &delta.pieces);
            let pieces = pieces.chain(layout.tables.values().flat_map(|table| &table.pieces));
            for piece in pieces {
                *wanted.entry(piece.segment).or_default() += piece.pages;
                let segment = layout.segment(piece.segment);
                if segment.kind.is_none() || piece.first + piece.pages > segment.used {
                    return Err(format!("{piece:?} lies in {segment:?}"));
                }
            }
            for (number, segment) in (0..).zip(layout.segments.ever_used()) {
                let counted = wanted.get(&number).copied().unwrap_or(0);
                if segment.live != counted {
                    return Err(format!("segment {number} has {counted}: {segment:?}"));
                }
            }
            Ok(())
        })?;
        self.audit_places()
    }

    /// Whether the places of recent facts are filled, and every one is of one block.
    fn audit_places(&self) -> Result<(), String> {
        let map = self.map.borrow();
        let mut taken: BTreeMap<u64, ExtentKey> = BTreeMap::new();
        for (key, leaf) in map.recent_in(ExtentKey::LOWEST, None) {
            for fact in leaf.facts() {
                if fact.state != State::Present {
                    continue;
                }
                let number = self.segment_of(fact.place.page());
                let segment = self.manifest.with(|layout| layout.segment(number));
                let first = self.page_of(number, 0);
                let is_filled = segment.kind.is_some()
                    && segment.epoch == fact.place.epoch()
                    && fact.place.page() < first + u64::from(segment.used);
                if !is_filled {
                    return Err(format!("{key:?} {fact:?} lies in {segment:?}"));
                }
                if let Some(other) = taken.insert(fact.place.page(), *key) {
                    return Err(format!("{key:?} {fact:?} lies where {other:?} does"));
                }
            }
        }
        Ok(())
    }
}
