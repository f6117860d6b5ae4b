//! Which sectors of writes that are not durable may have arrived: a device writes sectors as a
//! whole, and promises no order.

use std::collections::BTreeSet;

use super::super::Dice;
use super::super::contents::Sector;

/// Up to so many sectors all subsets are tried.
const EXHAUSTIVE_SECTORS: usize = 10;
/// Up to so many pages all subsets of whole pages are tried.
const EXHAUSTIVE_PAGES: usize = 8;
/// So many subsets more are drawn where not all are tried.
const SAMPLES: usize = 64;

/// Subsets of these sectors, as bits. All of them if there are few. Else: every beginning and
/// every end, every one and every pair alone and missing, every combination of whole pages, and
/// some that are drawn.
pub(super) fn subsets(sectors: &[Sector<'_>]) -> Vec<u128> {
    let count = sectors.len();
    assert!(count < 128, "{count} sectors in flight at once");
    if count <= EXHAUSTIVE_SECTORS {
        return (0..1 << count).collect();
    }
    let all = (1u128 << count) - 1;
    let mut chosen = BTreeSet::new();
    for one in 0..count {
        chosen.insert((1 << one) - 1);
        for other in 0..=one {
            chosen.insert(1 << one | 1 << other);
        }
    }
    let mut pages = Vec::new();
    let mut first = 0;
    for of_page in sectors.chunk_by(|one, next| one.page() == next.page()) {
        pages.push(((1u128 << of_page.len()) - 1) << first);
        first += of_page.len();
    }
    if pages.len() <= EXHAUSTIVE_PAGES {
        for subset in 0..1u32 << pages.len() {
            let whole = (0..).zip(&pages).filter(|(n, _)| subset >> n & 1 == 1);
            chosen.insert(whole.fold(0, |bits, (_, page)| bits | page));
        }
    }
    let dice = Dice::new(count as u64);
    for _ in 0..SAMPLES {
        chosen.insert((u128::from(dice.next()) << 64 | u128::from(dice.next())) & all);
    }
    let missing: Vec<u128> = chosen.iter().map(|bits| all & !bits).collect();
    chosen.extend(missing);
    chosen.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sectors(count: u64) -> Vec<Sector<'static>> {
        let offsets = (0..count).map(|number| number * 512);
        let sector = |offset| Sector {
            area: "home",
            offset,
            bytes: &[1; 512],
        };
        offsets.map(sector).collect()
    }

    #[test]
    fn of_few_sectors_every_subset_is_tried() {
        assert_eq!(subsets(&[]), [0]);
        assert_eq!(subsets(&sectors(3)), (0..8).collect::<Vec<u128>>());
        assert_eq!(subsets(&sectors(10)).len(), 1024);
    }

    #[test]
    fn of_many_sectors_beginnings_gaps_pairs_and_pages_are_tried() {
        let found: BTreeSet<u128> = subsets(&sectors(20)).into_iter().collect();
        for wanted in [0, 0xf_ffff, 0x3ff, 0xf_fffd, 0x8_0001, 0xf_00ff, 0x0_ff00] {
            assert!(found.contains(&wanted), "{wanted:x}");
        }
        assert!(found.len() > 400, "{}", found.len());
    }
}
