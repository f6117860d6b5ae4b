//! The state machine, change by change.

use holdfast_reservation::{
    Action, Nexus, Refusal as ReservationRefusal, Request, ReservationType,
};
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::VolumeId;

use super::*;

mod drain;
mod eviction;
mod mending;
mod moves;
mod thin;

fn identity() -> ClusterIdentity {
    ClusterIdentity {
        id: [7; 16],
        name: "test".into(),
        authority: vec![1],
    }
}

pub(super) fn start(node: u64, incarnation: u64) -> Change {
    Change::NodeStarted(NodeStart {
        node: NodeId(node),
        uuid: [node as u8; 16],
        incarnation: Incarnation(incarnation),
        link_address: String::new(),
        api_address: String::new(),
        portal_address: String::new(),
        version: String::new(),
    })
}

pub(super) fn down(node: NodeId) -> Change {
    Change::NodeDown {
        node,
        incarnation: Incarnation(1),
    }
}

fn spec(name: &str) -> VolumeSpec {
    VolumeSpec {
        name: name.into(),
        size_bytes: 4 << 20,
        logical_block_bytes: 512,
        copies: 3,
        slice_bytes: 1 << 20,
        chap: None,
        naa_random: 1,
        now_unix_ms: 0,
    }
}

/// Five nodes up and volume 1 created.
pub(super) fn cluster() -> ClusterState {
    let mut state = ClusterState::default();
    assert_eq!(
        state.apply(Change::Found {
            cluster: identity(),
            uuid: [1; 16],
            link_address: String::new(),
        }),
        Outcome::Admitted(NodeId(1))
    );
    for node in 2..=5_u64 {
        let secret_hash = [node as u8; 32];
        state.apply(Change::AddToken {
            secret_hash,
            expires_unix_ms: 10,
        });
        let admission = Admission {
            secret_hash,
            uuid: [node as u8; 16],
            link_address: String::new(),
            now_unix_ms: 5,
        };
        assert_eq!(
            state.apply(Change::Admit(admission)),
            Outcome::Admitted(NodeId(node))
        );
    }
    for node in 1..=5 {
        assert_eq!(state.apply(start(node, 1)), Outcome::Done);
    }
    assert_eq!(
        state.apply(Change::CreateVolume(spec("db"))),
        Outcome::Created(VolumeId(1))
    );
    state.check();
    state
}

pub(super) fn open(state: &mut ClusterState) {
    let volume = &state.volumes[&VolumeId(1)];
    let running: Vec<_> = state
        .nodes
        .iter()
        .filter(|(_, record)| record.status == NodeStatus::Up)
        .map(|(node, record)| (*node, record.incarnation))
        .collect();
    let up = |node: &NodeId| running.iter().any(|(member, _)| member == node);
    let slices = volume
        .slices
        .values()
        .map(|s| s.in_sync().filter(up).collect())
        .collect();
    let reconciled = Reconciled {
        slices,
        incarnations: running.clone(),
    };
    let view = volume.view;
    let opened = Change::Opened {
        volume: VolumeId(1),
        view,
        reconciled,
    };
    assert_eq!(state.apply(opened), Outcome::Done);
    state.check();
}

/// What a node knows that starts from a snapshot of this state.
pub(super) fn read_back(state: &ClusterState) -> ClusterState {
    let bytes: Vec<u8> = state.pieces().flatten().collect();
    let (mut read, mut rest) = (ClusterState::default(), &bytes[..]);
    loop {
        let (progress, following) = read.take_up(rest).expect("a section");
        rest = following;
        if progress == Progress::Complete {
            assert!(rest.is_empty());
            read.check();
            return read;
        }
    }
}

#[test]
fn two_nodes_down_leave_every_slice_a_copy_and_an_owner() {
    for first in 1..=5 {
        for second in 1..=5 {
            let mut state = cluster();
            open(&mut state);
            state.apply(down(NodeId(first)));
            state.apply(down(NodeId(second)));
            state.check();
            let volume = &state.volumes[&VolumeId(1)];
            let owner = volume.owner.expect("three nodes are up");
            assert!(owner.node != NodeId(first) && owner.node != NodeId(second));
        }
    }
}

#[test]
fn a_new_owner_takes_office_in_a_larger_view_and_opens_once() {
    let mut state = cluster();
    open(&mut state);
    let before = state.volumes[&VolumeId(1)].clone();
    state.apply(down(before.owner.expect("open").node));
    let after = &state.volumes[&VolumeId(1)];
    assert!(after.view > before.view && !after.open);
    let stale = Change::RemoveCopies {
        volume: VolumeId(1),
        view: before.view,
        slices: vec![0],
        node: before.slices[0].in_sync().next().expect("a copy"),
    };
    assert_eq!(state.apply(stale), Outcome::Refused(Refusal::ViewStale));
    open(&mut state);
}

#[test]
fn a_copy_that_restarted_during_the_takeover_is_not_in_sync_afterwards() {
    let mut state = cluster();
    let volume = state.volumes[&VolumeId(1)].clone();
    let owner = volume.owner.expect("nodes are up").node;
    let slices: Vec<Vec<NodeId>> = volume
        .slices
        .values()
        .map(|s| s.in_sync().collect())
        .collect();
    let member = *slices
        .iter()
        .flatten()
        .find(|node| **node != owner)
        .expect("three copies");
    let incarnations = (1..=5).map(|node| (NodeId(node), Incarnation(1))).collect();
    state.apply(start(member.0, 2));
    let view = volume.view;
    let reconciled = Reconciled {
        slices,
        incarnations,
    };
    let opened = Change::Opened {
        volume: VolumeId(1),
        view,
        reconciled,
    };
    assert_eq!(state.apply(opened), Outcome::Done);
    let after = &state.volumes[&VolumeId(1)];
    assert!(after.slices.values().all(|slice| !slice.is_in_sync(member)));
}

#[test]
fn the_last_in_sync_copy_is_never_removed() {
    let mut state = cluster();
    open(&mut state);
    let volume = state.volumes[&VolumeId(1)].clone();
    let members: Vec<NodeId> = volume.slices[0].in_sync().collect();
    let remove = |state: &mut ClusterState, node| {
        state.apply(Change::RemoveCopies {
            volume: VolumeId(1),
            view: volume.view,
            slices: vec![0],
            node,
        })
    };
    assert_eq!(remove(&mut state, members[0]), Outcome::Done);
    assert_eq!(remove(&mut state, members[1]), Outcome::Done);
    assert_eq!(
        remove(&mut state, members[2]),
        Outcome::Refused(Refusal::LastCopy)
    );
    state.check();
}

#[test]
fn a_power_cut_of_all_with_one_node_lost_for_ever_keeps_the_other_copies_in_sync() {
    let mut state = cluster();
    open(&mut state);
    let volume = state.volumes[&VolumeId(1)].clone();
    let lost = volume.owner.expect("open").node;
    let others: Vec<NodeId> = (1..=5).map(NodeId).filter(|node| *node != lost).collect();
    for node in &others {
        state.apply(start(node.0, 2));
    }
    state.apply(down(lost));
    let after = &state.volumes[&VolumeId(1)];
    assert!(!after.open && after.owner.is_some_and(|owner| owner.node != lost));
    for (slice, before) in after.slices.values().zip(volume.slices.values()) {
        for node in before.in_sync() {
            assert!(
                slice.is_in_sync(node),
                "no owner has said that node {node} is stale"
            );
        }
    }
}

#[test]
fn an_identity_is_never_reused() {
    let mut state = cluster();
    let mut foreign = start(2, 9);
    if let Change::NodeStarted(start) = &mut foreign {
        start.uuid = [99; 16];
    }
    assert_eq!(
        state.apply(foreign),
        Outcome::Refused(Refusal::IdentityReused(NodeId(2)))
    );
    assert_eq!(
        state.apply(start(2, 0)),
        Outcome::Refused(Refusal::IncarnationStale(NodeId(2)))
    );
}

#[test]
fn a_token_admits_one_node_and_ends() {
    let mut state = cluster();
    let again = Admission {
        secret_hash: [2; 32],
        uuid: [50; 16],
        link_address: String::new(),
        now_unix_ms: 5,
    };
    assert_eq!(
        state.apply(Change::Admit(again)),
        Outcome::Refused(Refusal::TokenUnknown)
    );
    state.apply(Change::AddToken {
        secret_hash: [9; 32],
        expires_unix_ms: 10,
    });
    let late = Admission {
        secret_hash: [9; 32],
        uuid: [50; 16],
        link_address: String::new(),
        now_unix_ms: 10,
    };
    assert_eq!(
        state.apply(Change::Admit(late)),
        Outcome::Refused(Refusal::TokenExpired)
    );
}

#[test]
fn a_volume_for_which_a_node_could_not_keep_account_is_refused_at_once() {
    let mut state = cluster();
    let large = |name: &str| {
        Change::CreateVolume(VolumeSpec {
            size_bytes: WHOLE_VOLUME_BYTES_MAX,
            slice_bytes: SLICE_BYTES,
            copies: 5,
            ..spec(name)
        })
    };
    // With the four small slices of the first volume, three large ones fit on each node.
    for number in 2..=4 {
        let created = state.apply(large(&format!("large{number}")));
        assert_eq!(created, Outcome::Created(VolumeId(number)));
    }
    let before = state.clone();
    let outcome = state.apply(large("one-more"));
    assert!(
        matches!(outcome, Outcome::Refused(Refusal::TooManySlices { .. })),
        "{outcome:?}"
    );
    assert_eq!(state, before, "not even a number is used up");
    // A smaller one still fits, and may not grow beyond.
    let small = VolumeSpec {
        slice_bytes: SLICE_BYTES,
        copies: 5,
        ..spec("small")
    };
    let created = state.apply(Change::CreateVolume(small));
    assert_eq!(created, Outcome::Created(VolumeId(5)));
    let outcome = state.apply(Change::GrowVolume {
        volume: VolumeId(5),
        expected_bytes: None,
        size_bytes: WHOLE_VOLUME_BYTES_MAX,
    });
    assert!(
        matches!(outcome, Outcome::Refused(Refusal::TooManySlices { .. })),
        "{outcome:?}"
    );
    state.check();
}

#[test]
fn volumes_out_of_range_are_refused_and_change_nothing() {
    let mut state = cluster();
    let before = state.clone();
    let mut refused = |change: fn(&mut VolumeSpec)| {
        let mut wanted = spec("other");
        change(&mut wanted);
        assert!(matches!(
            state.apply(Change::CreateVolume(wanted)),
            Outcome::Refused(_)
        ));
    };
    refused(|spec| spec.name = "db".into());
    refused(|spec| spec.name = "Ünï".into());
    refused(|spec| spec.name = "-a".into());
    refused(|spec| spec.size_bytes = VOLUME_BYTES_MAX + 4096);
    refused(|spec| spec.size_bytes = 5000);
    refused(|spec| spec.copies = 0);
    refused(|spec| spec.copies = 6);
    refused(|spec| spec.logical_block_bytes = 520);
    refused(|spec| spec.slice_bytes = 3 << 20);
    assert_eq!(state, before);
}

fn nexus(name: &str, node: u16) -> Nexus {
    Nexus {
        initiator: name.into(),
        isid: [0; 6],
        target_port: node,
    }
}

fn reserving(nexus: Nexus, key: u64, action: Action) -> Change {
    let request = Request { nexus, key, action };
    Change::ChangeReservations {
        volume: VolumeId(1),
        request,
    }
}

fn registering(nexus: Nexus, new_key: u64) -> Change {
    let action = Action::Register {
        new_key,
        check_key: true,
        persist: false,
    };
    reserving(nexus, 0, action)
}

#[test]
fn of_two_nodes_that_reserve_at_once_the_first_in_the_log_wins() {
    let mut state = cluster();
    for node in [1, 2] {
        let done = state.apply(registering(nexus("a", node), 7));
        assert!(matches!(done, Outcome::Reserved(_)));
    }
    let reserve = Action::Reserve(ReservationType::WriteExclusive);
    let first = state.apply(reserving(nexus("a", 2), 7, reserve.clone()));
    assert!(matches!(first, Outcome::Reserved(_)));
    let before = state.clone();
    let second = state.apply(reserving(nexus("a", 1), 7, reserve));
    let conflict = Refusal::Reservation(ReservationRefusal::Conflict);
    assert_eq!(second, Outcome::Refused(conflict));
    assert_eq!(state, before);
}

#[test]
fn registrations_outlive_every_node_and_a_reserve_the_end_of_no_other_node() {
    let mut state = cluster();
    state.apply(reserving(nexus("a", 2), 0, Action::ReserveUnit));
    state.apply(down(NodeId(1)));
    let table = |state: &ClusterState| state.volumes[&VolumeId(1)].reservations.clone();
    assert_eq!(table(&state).unit_holder(), Some(&nexus("a", 2)));
    state.apply(start(2, 2));
    assert_eq!(table(&state).unit_holder(), None);
    state.apply(registering(nexus("a", 2), 7));
    let reserve = Action::Reserve(ReservationType::ExclusiveAccess);
    state.apply(reserving(nexus("a", 2), 7, reserve));
    for node in 1..=5 {
        state.apply(start(node, 9));
    }
    assert!(table(&state).is_holder(&nexus("a", 2)));
}

#[test]
fn reservations_go_with_their_volume() {
    let mut state = cluster();
    state.apply(registering(nexus("a", 2), 7));
    let volume = VolumeId(1);
    state.apply(Change::DeleteVolume { volume });
    let late = state.apply(registering(nexus("a", 2), 8));
    assert_eq!(late, Outcome::Refused(Refusal::VolumeUnknown(volume)));
    state.apply(Change::CreateVolume(spec("db")));
    assert!(state.volumes[&VolumeId(2)].reservations.is_empty());
}

const MIB: u64 = 1 << 20;

fn grow(size_bytes: u64) -> Change {
    Change::GrowVolume {
        volume: VolumeId(1),
        expected_bytes: None,
        size_bytes,
    }
}

/// What an owner answers that has set up every copy of these slices.
fn set_up(state: &ClusterState, slices: std::ops::Range<u32>) -> Reconciled {
    let record = &state.volumes[&VolumeId(1)];
    Reconciled {
        slices: record
            .slices
            .range(slices)
            .map(|(_, slice)| slice.in_sync().collect())
            .collect(),
        incarnations: (1..=5).map(|node| (NodeId(node), Incarnation(1))).collect(),
    }
}

fn grown(state: &ClusterState, reconciled: Reconciled) -> Change {
    Change::Grown {
        volume: VolumeId(1),
        view: state.volumes[&VolumeId(1)].view,
        reconciled,
    }
}

#[test]
fn a_volume_has_its_new_size_when_its_owner_has_set_up_what_was_added() {
    let mut state = cluster();
    open(&mut state);
    let before = state.volumes[&VolumeId(1)].clone();
    assert_eq!(state.apply(grow(6 * MIB + 4096)), Outcome::Done);
    let volume = &state.volumes[&VolumeId(1)];
    assert_eq!((volume.size_bytes, volume.slices.len()), (4 * MIB, 7));
    assert!(volume.slices.range(..4).eq(before.slices.iter()));
    assert_eq!(volume.view, before.view, "the owner stays in office");
    assert_eq!(state.first_fresh_slice(VolumeId(1)), 4);

    let mut reached = set_up(&state, 4..7);
    let late = reached.slices[1].pop().expect("three copies");
    let change = grown(&state, reached);
    assert_eq!(state.apply(change), Outcome::Done);
    let volume = &state.volumes[&VolumeId(1)];
    assert_eq!(volume.size_bytes, 6 * MIB + 4096);
    assert!(!volume.slices[5].is_in_sync(late), "nobody set it up");
    assert_eq!(state.first_fresh_slice(VolumeId(1)), 7);
    state.check();
}

#[test]
fn a_volume_grows_within_its_last_slice_without_new_ones() {
    let mut state = cluster();
    open(&mut state);
    state.apply(grow(4 * MIB + 8192));
    let change = grown(&state, set_up(&state, 4..5));
    state.apply(change);
    assert_eq!(state.apply(grow(5 * MIB)), Outcome::Done);
    let change = grown(&state, Reconciled::default());
    assert_eq!(state.apply(change), Outcome::Done);
    assert_eq!(state.volumes[&VolumeId(1)].size_bytes, 5 * MIB);
}

#[test]
fn a_takeover_meanwhile_opens_what_it_knew_of_and_the_rest_later_or_all_of_it() {
    for new_slices_too in [false, true] {
        let mut state = cluster();
        open(&mut state);
        let owner = state.volumes[&VolumeId(1)].owner.expect("open").node;
        state.apply(grow(6 * MIB));
        state.apply(down(owner));
        let view = state.volumes[&VolumeId(1)].view;
        let known = if new_slices_too { 6 } else { 4 };
        let mut reconciled = set_up(&state, 0..known);
        for members in &mut reconciled.slices {
            members.retain(|node| *node != owner);
        }
        let opened = Change::Opened {
            volume: VolumeId(1),
            view,
            reconciled,
        };
        assert_eq!(state.apply(opened), Outcome::Done);
        let size = if new_slices_too { 6 * MIB } else { 4 * MIB };
        assert_eq!(state.volumes[&VolumeId(1)].size_bytes, size);
        assert_eq!(state.growing.is_empty(), new_slices_too);
        if !new_slices_too {
            let change = grown(&state, set_up(&state, 4..6));
            assert_eq!(state.apply(change), Outcome::Done);
            assert_eq!(state.volumes[&VolumeId(1)].size_bytes, 6 * MIB);
        }
    }
}

#[test]
fn only_the_owner_in_office_says_that_a_volume_has_grown_and_only_once() {
    let mut state = cluster();
    open(&mut state);
    state.apply(grow(5 * MIB));
    let mut stale = grown(&state, set_up(&state, 4..5));
    if let Change::Grown { view, .. } = &mut stale {
        view.0 -= 1;
    }
    assert_eq!(state.apply(stale), Outcome::Refused(Refusal::ViewStale));
    let change = grown(
        &state,
        Reconciled {
            slices: vec![vec![]],
            incarnations: vec![],
        },
    );
    assert_eq!(state.apply(change), Outcome::Refused(Refusal::LastCopy));
    let change = grown(&state, set_up(&state, 4..5));
    assert_eq!(state.apply(change.clone()), Outcome::Done);
    assert_eq!(state.apply(change), Outcome::Refused(Refusal::ViewStale));
}

#[test]
fn a_resize_that_cannot_be_meant_is_refused_and_changes_nothing() {
    let mut state = cluster();
    open(&mut state);
    let before = state.clone();
    let shrink = Refusal::CannotShrink {
        now_bytes: 4 * MIB,
        wanted_bytes: 3 * MIB,
    };
    assert_eq!(state.apply(grow(3 * MIB)), Outcome::Refused(shrink));
    for size in [5 * MIB + 512, WHOLE_VOLUME_BYTES_MAX + 4096, 0] {
        let refused = Outcome::Refused(Refusal::SizeInvalid(size));
        assert_eq!(state.apply(grow(size)), refused);
    }
    let unseen = Change::GrowVolume {
        volume: VolumeId(1),
        expected_bytes: Some(3 * MIB),
        size_bytes: 5 * MIB,
    };
    let changed = Refusal::SizeChanged {
        now_bytes: 4 * MIB,
        expected_bytes: 3 * MIB,
    };
    assert_eq!(state.apply(unseen), Outcome::Refused(changed));
    let unknown = Change::GrowVolume {
        volume: VolumeId(9),
        expected_bytes: None,
        size_bytes: 5 * MIB,
    };
    let refused = Outcome::Refused(Refusal::VolumeUnknown(VolumeId(9)));
    assert_eq!(state.apply(unknown), refused);
    assert_eq!(
        state.apply(grow(4 * MIB)),
        Outcome::Done,
        "it has that size"
    );
    assert_eq!(state, before);

    state.apply(grow(5 * MIB));
    assert_eq!(state.apply(grow(5 * MIB)), Outcome::Done, "asked for again");
    let already = Outcome::Refused(Refusal::GrowsAlready(5 * MIB));
    assert_eq!(state.apply(grow(6 * MIB)), already);
    let volume = VolumeId(1);
    state.apply(Change::DeleteVolume { volume });
    assert!(state.growing.is_empty());
}

fn rotate(secret: &str, now_unix_ms: u64, old_until_unix_ms: u64, revoke: bool) -> Change {
    Change::RotateSecret {
        volume: VolumeId(1),
        chap: chap(secret),
        now_unix_ms,
        old_until_unix_ms,
        revoke,
    }
}

fn chap(secret: &str) -> Chap {
    Chap {
        username: "db".into(),
        secret: secret.into(),
        mutual: None,
    }
}

#[test]
fn a_replaced_secret_is_good_until_its_time_and_revoking_voids_all_but_the_present_one() {
    let mut state = cluster();
    let refused = state.apply(rotate("none", 0, 0, false));
    assert_eq!(refused, Outcome::Refused(Refusal::NoSecret));
    let first = Some(chap("first"));
    state
        .volumes
        .update(VolumeId(1), |record| record.chap = first);
    let valid = |state: &ClusterState, at| -> Vec<String> {
        let retiring = state.front(VolumeId(1)).retiring_at(at);
        retiring.map(|secret| secret.chap.secret.clone()).collect()
    };
    assert_eq!(
        state.apply(rotate("second", 100, 200, false)),
        Outcome::Done
    );
    assert_eq!(valid(&state, 199), ["first"]);
    assert!(valid(&state, 200).is_empty());
    assert_eq!(state.apply(rotate("third", 150, 300, false)), Outcome::Done);
    assert_eq!(valid(&state, 199), ["first", "second"]);
    let front = state.front(VolumeId(1));
    assert_eq!((front.secret_number, front.oldest_secret), (2, 0));
    assert_eq!(
        state.apply(rotate("fourth", 250, 250, false)),
        Outcome::Done
    );
    assert_eq!(
        state.front(VolumeId(1)).retiring.len(),
        1,
        "the first has expired"
    );
    assert_eq!(state.apply(rotate("fifth", 260, 260, true)), Outcome::Done);
    let front = state.front(VolumeId(1));
    assert_eq!((front.secret_number, front.oldest_secret), (4, 4));
    assert!(front.retiring.is_empty());
    assert_eq!(state.volumes[&VolumeId(1)].chap, Some(chap("fifth")));

    assert_eq!(read_back(&state).fronts, state.fronts);
    let volume = VolumeId(1);
    state.apply(Change::DeleteVolume { volume });
    assert_eq!(state.fronts, Fronts::default());
}

#[test]
fn a_volume_is_made_with_its_access_list_or_not_at_all() {
    let mut state = cluster();
    let with = |name: &str| Change::CreateVolumeWith {
        spec: spec("other"),
        front: FrontChange {
            allow: vec![name.into()],
            ..FrontChange::default()
        },
    };
    let before = state.clone();
    let refused = Refusal::InitiatorInvalid("odd".into());
    assert_eq!(state.apply(with("odd")), Outcome::Refused(refused));
    assert_eq!(state, before);
    assert_eq!(state.apply(with("iqn.a")), Outcome::Created(VolumeId(2)));
    assert!(!state.front(VolumeId(2)).admits("iqn.b"));
    assert!(state.front(VolumeId(1)).admits("iqn.b"));
}
