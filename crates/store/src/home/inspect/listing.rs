//! The home's structures as rows, for people who have to look at them.
//!
//! Tested with the whole store: `tests/inspect.rs`.

use holdfast_runtime::PAGE_BYTES;

use super::super::Home;
use super::super::fact::State;
use super::super::layout::Kind;
use super::ManifestImage;
use crate::inspect::dump::{Cell, Filter, Listing};

impl Home {
    /// Every segment that is within the area.
    pub(crate) fn list_segments(&self, filter: &Filter, listing: &mut Listing) {
        let all = 0..self.segment_count();
        let wanted = match filter.segment {
            Some(number) if all.contains(&number) => number..number + 1,
            Some(_) => 0..0,
            None => all,
        };
        for number in wanted {
            let segment = self.manifest.with(|layout| layout.segment(number));
            let kind = match segment.kind {
                None => "free",
                Some(Kind::Data) => "data",
                Some(Kind::Cold) => "cold",
                Some(Kind::Map) => "map",
            };
            listing.add(vec![
                Cell::number(number),
                Cell::word(kind),
                Cell::number(segment.epoch),
                Cell::number(segment.used),
                Cell::number(segment.live),
                Cell::Flag(segment.sealed),
                Cell::Number(segment.written),
                Cell::Number(self.byte_at(number, 0)),
            ]);
            if listing.is_full() {
                return;
            }
        }
    }

    /// Every fact as it counts.
    pub(crate) async fn list_map(&self, filter: &Filter, listing: &mut Listing) {
        for start in self.parts() {
            let table = self
                .map
                .borrow()
                .tables
                .get(&start)
                .map(|open| open.table.run);
            for (key, leaf) in self.part(start).await {
                if !filter.takes(key.slice) {
                    continue;
                }
                for fact in leaf.facts() {
                    let block = key.extent * super::super::fact::EXTENT_BLOCKS;
                    let first = block + u32::from(fact.block);
                    let last = first + u32::from(fact.more);
                    if filter.block.is_some_and(|b| b < first || b > last) {
                        continue;
                    }
                    let recent = self.map.borrow().recent(key, fact.block).is_some();
                    let run = match (recent, table) {
                        (true, _) => Cell::word("recent"),
                        (false, Some(run)) => Cell::Text(format!("table {run}")),
                        (false, None) => Cell::Nothing,
                    };
                    let state = match fact.state {
                        State::Present => "present",
                        State::Zero => "zero",
                        State::Unknown => "unknown",
                    };
                    let placed = fact.state == State::Present;
                    let segment = self.segment_of(fact.place.page());
                    let place = |cell: Cell| if placed { cell } else { Cell::Nothing };
                    listing.add(vec![
                        Cell::Number(key.slice.volume),
                        Cell::number(key.slice.slice),
                        Cell::number(first),
                        Cell::number(u32::from(fact.more) + 1),
                        Cell::word(state),
                        Cell::Number(fact.seq.0),
                        Cell::Number(fact.view.0),
                        place(Cell::Text(format!("{:016x}", fact.checksum))),
                        place(Cell::number(segment)),
                        place(Cell::number(fact.place.epoch())),
                        place(Cell::Number(fact.place.page() * PAGE_BYTES as u64)),
                        run,
                    ]);
                    if listing.is_full() {
                        return;
                    }
                }
            }
        }
    }

    /// Deltas and tables that the manifest names.
    pub(crate) fn list_runs(&self, listing: &mut Listing) {
        let (deltas, tables) = self
            .manifest
            .with(|layout| (layout.deltas.clone(), layout.tables.clone()));
        let place = |pieces: &[super::super::layout::Piece]| {
            let words = pieces
                .iter()
                .map(|piece| format!("{}:{}+{}", piece.segment, piece.first, piece.pages));
            words.collect::<Vec<_>>().join(" ")
        };
        for delta in deltas {
            let words = format!(
                "delta {}: {} leaves at {}",
                delta.run,
                delta.leaves,
                place(&delta.pieces)
            );
            listing.add(vec![
                Cell::Nothing,
                Cell::word("delta"),
                Cell::Nothing,
                Cell::Number(delta.run),
                Cell::Nothing,
                Cell::Text(words),
            ]);
        }
        for (start, table) in tables {
            let words = format!(
                "table {} from volume {} slice {} extent {}: {} leaves at {}, deltas through {}",
                table.run,
                start.slice.volume,
                start.slice.slice,
                start.extent,
                table.leaves,
                place(&table.pieces),
                table.merged_through
            );
            listing.add(vec![
                Cell::Nothing,
                Cell::word("table"),
                Cell::Nothing,
                Cell::Number(table.run),
                Cell::Nothing,
                Cell::Text(words),
            ]);
        }
    }
}

impl ManifestImage {
    /// Every entry that is intact, those that no longer count included.
    pub(crate) fn list(&self, listing: &mut Listing) {
        for found in &self.entries {
            let (generation, number, bytes) = found.numbers();
            listing.add(vec![
                Cell::Number(found.at),
                Cell::word(found.kind()),
                Cell::Number(generation),
                Cell::Number(number),
                Cell::Number(bytes as u64),
                Cell::Text(found.words()),
            ]);
        }
    }
}
