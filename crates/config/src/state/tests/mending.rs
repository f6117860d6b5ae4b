//! What a leader finds to mend, and mends in parts.

use super::*;

/// Everything that a leader would propose; answers how many slices each part was about.
pub(super) fn mend(state: &mut ClusterState) -> Vec<u32> {
    let mut parts = Vec::new();
    while state.has_to_mend() {
        let slices = mend_some(state);
        if slices == 0 {
            break;
        }
        parts.push(slices);
    }
    parts
}

/// The next part of it.
pub(super) fn mend_some(state: &mut ClusterState) -> u32 {
    let wanted = state.all_to_mend(MENDED_AT_ONCE_MAX);
    let count = wanted.len() as u32;
    let mended = state.apply(Change::Mend { slices: wanted });
    assert_eq!(mended, Outcome::Placed { slices: count });
    state.check();
    count
}

#[test]
fn what_can_be_mended_is_found_in_parts_of_any_length() {
    let mut state = cluster();
    state.apply(Change::Drain {
        node: NodeId(5),
        now_unix_ms: 1,
    });
    let all = state.all_to_mend(usize::MAX);
    assert!(!all.is_empty());
    for most in 1..=state.volumes[&VolumeId(1)].slices.len() + 1 {
        let (mut found, mut next) = (Vec::new(), Some(0));
        while let Some(first) = next {
            let part = state.look_to_mend(VolumeId(1), first, most);
            found.extend(part.found.into_iter().map(|index| (VolumeId(1), index)));
            next = part.next;
        }
        assert_eq!(found, all, "{most} at once");
    }
    let nothing = vec![(VolumeId(1), u32::MAX), (VolumeId(99), 0)];
    let none = Outcome::Placed { slices: 0 };
    assert_eq!(state.apply(Change::Mend { slices: nothing }), none);
}
