//! Pages: every entry once, whatever happens between them.
#![allow(
    clippy::disallowed_methods,
    reason = "measures what a listing costs, by the clock"
)]

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Instant;

use holdfast_config::state::Change;

use super::*;
use crate::testing::{applied, created, open, three_nodes};

/// `db`, and these.
fn state_with(names: &[&str]) -> ClusterState {
    let (mut state, _) = three_nodes();
    for name in names {
        let volume = created(&mut state, name, 1 << 30);
        open(&mut state, volume);
    }
    state
}

fn named(state: &ClusterState, which: &WhichVolumes) -> Vec<String> {
    let (ids, _) = volumes(state, which).unwrap();
    let name = |id: &VolumeId| state.volumes.get(id).unwrap().name.clone();
    ids.iter().map(name).collect()
}

fn page(state: &ClusterState, limit: u64, cursor: Option<String>) -> (Vec<String>, Option<String>) {
    let which = WhichVolumes {
        limit: Some(limit),
        cursor,
        ..WhichVolumes::default()
    };
    let (_, next) = volumes(state, &which).unwrap();
    (named(state, &which), next)
}

#[test]
fn pages_are_in_the_order_of_names_and_the_last_has_no_cursor() {
    let state = state_with(&["e", "a", "d", "b", "c"]);
    let (first, next) = page(&state, 4, None);
    assert_eq!(first, ["a", "b", "c", "d"]);
    let (second, next) = page(&state, 4, next);
    assert_eq!(
        (second, next),
        (vec!["db".to_owned(), "e".to_owned()], None)
    );
    let (all, next) = page(&state, 6, None);
    assert_eq!((all.len(), next), (6, None), "a full page may be the last");
}

#[test]
fn a_cursor_stays_good_when_volumes_come_and_go() {
    let mut state = state_with(&["b", "d", "f", "h"]);
    let (first, next) = page(&state, 2, None);
    assert_eq!(first, ["b", "d"]);
    // The last one shown goes, one comes before the cursor, one behind it.
    let (volume, _) = state.volume_by_name("d").unwrap();
    applied(&mut state, Change::DeleteVolume { volume });
    created(&mut state, "a", 1 << 30);
    created(&mut state, "g", 1 << 30);
    let (second, next) = page(&state, 3, next);
    assert_eq!(second, ["db", "f", "g"]);
    let (third, next) = page(&state, 3, next);
    assert_eq!((third, next), (vec!["h".to_owned()], None));
}

#[test]
fn a_volume_has_to_pass_every_filter() {
    let mut state = state_with(&["web-1", "web-2", "old-web"]);
    let opening = created(&mut state, "web-3", 1 << 30);
    let listed = |which: WhichVolumes| named(&state, &which);
    let all = WhichVolumes::default;
    let prefix = Some("web".to_owned());
    assert_eq!(
        listed(WhichVolumes {
            prefix: prefix.clone(),
            ..all()
        }),
        ["web-1", "web-2", "web-3"]
    );
    let contains = Some("web".to_owned());
    assert_eq!(
        listed(WhichVolumes { contains, ..all() }),
        ["old-web", "web-1", "web-2", "web-3"]
    );
    assert_eq!(
        listed(WhichVolumes {
            impaired: true,
            ..all()
        }),
        ["web-3"]
    );
    let state_wanted = Some(VolumeState::Open);
    assert_eq!(
        listed(WhichVolumes {
            prefix: prefix.clone(),
            state: state_wanted,
            ..all()
        }),
        ["web-1", "web-2"]
    );
    let owner = state.volumes.get(&opening).unwrap().owner.unwrap().node.0;
    assert!(
        listed(WhichVolumes {
            owner: Some(owner),
            ..all()
        })
        .contains(&"web-3".to_owned())
    );
    let nobody = WhichVolumes {
        owner: Some(99),
        ..all()
    };
    assert_eq!(listed(nobody), [""; 0]);
}

#[test]
fn cursors_of_other_listings_and_impossible_pages_are_refused_with_a_hint() {
    let state = state_with(&[]);
    let refused = |limit, cursor: Option<&str>| {
        let which = WhichVolumes {
            limit,
            cursor: cursor.map(Into::into),
            ..WhichVolumes::default()
        };
        let problem = volumes(&state, &which).unwrap_err();
        assert_eq!(problem.kind, ProblemKind::Invalid);
        assert!(!problem.hint.is_empty());
    };
    refused(Some(0), None);
    refused(Some(PAGE_MAX + 1), None);
    refused(None, Some("n.3"));
    refused(None, Some("db"));
    let which = WhichNodes {
        cursor: Some("n.x".into()),
        ..WhichNodes::default()
    };
    assert!(nodes(Vec::new(), &which).is_err());
}

#[test]
fn slices_are_paged_by_their_numbers() {
    let mut state = state_with(&[]);
    let volume = created(&mut state, "large", 7 << 30);
    let record = state.volumes.get(&volume).unwrap();
    let placed = views::slices_from(record, 0).count() as u64;
    let (mut cursor, mut seen) = (None, Vec::new());
    loop {
        let which = WhichSlices {
            limit: Some(2),
            cursor,
        };
        let page = slices(record, &which).unwrap();
        assert!(page.slices.len() <= 2);
        assert!(page.slices.iter().all(|slice| slice.copies.len() == 3));
        seen.extend(page.slices.into_iter().map(|slice| slice.slice));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen.len() as u64, placed);
    let distinct: BTreeSet<u64> = seen.iter().copied().collect();
    assert_eq!(distinct.len(), seen.len());
    assert!(seen.is_sorted());
}

/// Everything that a node does for a listing of ten thousand volumes, except asking others. The
/// bound is ten times that of a release build on a quiet machine.
#[test]
fn ten_thousand_volumes_are_listed_and_summed_up_in_a_moment() {
    let (mut state, _) = three_nodes();
    for number in 0..10_000 {
        let volume = created(&mut state, &format!("volume-{number:05}"), 1 << 30);
        open(&mut state, volume);
    }
    let seen = views::Seen {
        state: Rc::new(state),
        local: holdfast_runtime::NodeId(1),
        leader: None,
        voters: BTreeSet::new(),
        heard: crate::peers::Heard::default(),
        missing_links: Vec::new(),
        now_unix_ms: 0,
    };
    let begun = Instant::now();
    let (mut cursor, mut count, mut bytes, mut longest) = (None, 0, 0, Default::default());
    loop {
        let page_begun = Instant::now();
        let which = WhichVolumes {
            cursor,
            ..WhichVolumes::default()
        };
        let (ids, next_cursor) = volumes(&seen.state, &which).unwrap();
        let shared = views::Shared::of(&seen);
        let shown = ids
            .iter()
            .filter_map(|id| views::volume(&seen, &shared, *id));
        let page = VolumePage {
            volumes: shown.collect(),
            next_cursor,
        };
        bytes += serde_json::to_vec(&page).unwrap().len();
        count += page.volumes.len();
        longest = page_begun.elapsed().max(longest);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    let all = begun.elapsed();
    assert_eq!(count, 10_001);
    let begun = Instant::now();
    let status = views::cluster(&seen, true);
    let summed_up = begun.elapsed();
    assert_eq!(status.volumes, 10_001);
    println!("{bytes} bytes in {all:?}, a page in {longest:?}; the cluster in {summed_up:?}");
    assert!(all.as_millis() < 1000, "{all:?}");
    assert!(summed_up.as_millis() < 1000, "{summed_up:?}");
}
