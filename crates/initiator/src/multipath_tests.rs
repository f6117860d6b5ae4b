//! Each row of the table of troubles, against targets that make that trouble on command.

use std::cell::RefCell;

use super::*;
use crate::ledger::Ledger;
use crate::load::{Load, LoadOptions};
use crate::scripted_target::{Medium, Refusal, ScriptedTarget, medium, on_one_thread};
use crate::session::Session;
use crate::verify::{VerifyOptions, verify};

const TARGET: &str = "iqn.2026-11.test:disk";

fn options(targets: &[&ScriptedTarget]) -> DiskOptions {
    let portals = targets.iter().map(|target| target.portal).collect();
    let session = SessionOptions::new("iqn.2026-11.test:host");
    DiskOptions {
        silence_limit: Duration::from_millis(100),
        give_up: Duration::from_secs(5),
        ..DiskOptions::new(portals, TARGET, session)
    }
}

async fn pair(medium: &Medium) -> (ScriptedTarget, ScriptedTarget) {
    (
        ScriptedTarget::start(medium).await,
        ScriptedTarget::start(medium).await,
    )
}

/// A disk whose path leads to `first`, with `second` as the other portal.
async fn disk_at(first: &ScriptedTarget, second: &ScriptedTarget) -> Disk {
    second
        .script
        .refuse_all
        .set(Some(Refusal::Sense(2, 4, 0x0c)));
    let disk = Disk::open(options(&[first, second])).await.unwrap();
    second.script.refuse_all.set(None);
    assert_eq!(disk.portal(), Some(first.portal));
    disk
}

fn block(fill: u8) -> Bytes {
    vec![fill; 4096].into()
}

async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn each_kind_of_failure_has_its_reaction() {
    let sense = |key, asc, ascq| reaction(&Error::CheckCondition { key, asc, ascq });
    assert_eq!(sense(0x06, 0x29, 0x00), Reaction::Repeat);
    assert_eq!(sense(0x02, 0x04, 0x0a), Reaction::RepeatLater);
    assert_eq!(sense(0x02, 0x04, 0x0b), Reaction::ChangePath);
    assert_eq!(sense(0x02, 0x04, 0x0c), Reaction::ChangePath);
    assert_eq!(sense(0x0b, 0x00, 0x00), Reaction::RepeatLater);
    assert_eq!(sense(0x03, 0x11, 0x00), Reaction::Report);
    assert_eq!(sense(0x07, 0x27, 0x07), Reaction::Report);
    assert_eq!(
        reaction(&Error::Busy { status: 0x28 }),
        Reaction::RepeatLater
    );
    assert_eq!(reaction(&Error::ReservationConflict), Reaction::Report);
    let lost = Error::ConnectionLost {
        reason: LostReason::Announced,
    };
    assert_eq!(reaction(&lost), Reaction::ChangePath);
}

#[test]
fn refusals_that_pass_are_retried_on_the_same_path() {
    on_one_thread(async {
        let target = ScriptedTarget::start(&medium()).await;
        let disk = Disk::open(options(&[&target])).await.unwrap();
        let passing = [
            Refusal::Sense(6, 0x29, 0),
            Refusal::Status(0x08),
            Refusal::Status(0x28),
            Refusal::Sense(2, 4, 0x0a),
            Refusal::Sense(0x0b, 0, 0),
        ];
        target.script.refusals.borrow_mut().extend(passing);
        disk.write(4096, block(7)).await.unwrap();
        assert_eq!(disk.read(4096, 4096).await.unwrap(), block(7));
        let expected = PathCounters {
            retries: 5,
            ..PathCounters::default()
        };
        assert_eq!(disk.counters(), expected);
    });
}

#[test]
fn a_refusal_for_good_is_reported_at_once() {
    on_one_thread(async {
        let target = ScriptedTarget::start(&medium()).await;
        let disk = Disk::open(options(&[&target])).await.unwrap();
        target
            .script
            .refusals
            .borrow_mut()
            .push_back(Refusal::Sense(7, 0x27, 7));
        let full = disk.write(0, block(1)).await.unwrap_err();
        assert_eq!(
            full,
            Error::CheckCondition {
                key: 7,
                asc: 0x27,
                ascq: 7
            }
        );
        assert_eq!(disk.counters(), PathCounters::default());
    });
}

#[test]
fn a_port_on_standby_is_left_for_one_that_serves() {
    on_one_thread(async {
        let (first, second) = pair(&medium()).await;
        let disk = disk_at(&first, &second).await;
        first
            .script
            .refuse_all
            .set(Some(Refusal::Sense(2, 4, 0x0b)));
        disk.write(0, block(3)).await.unwrap();
        assert_eq!(disk.portal(), Some(second.portal));
        assert_eq!(
            (disk.counters().failovers, disk.counters().silences),
            (1, 0)
        );
    });
}

#[test]
fn a_requested_logout_moves_the_load_without_an_error_or_a_retry() {
    on_one_thread(async {
        let (first, second) = pair(&medium()).await;
        let disk = disk_at(&first, &second).await;
        let ledger = Rc::new(RefCell::new(Ledger::new(3, 0, 512)));
        let load = Load::start(disk.clone(), Rc::clone(&ledger), LoadOptions::default()).unwrap();
        until(|| load.statistics().operations() > 100).await;
        first.script.request_logout();
        until(|| first.script.logouts.get() == 1).await;
        assert_eq!(disk.portal(), Some(second.portal));
        let before = load.statistics().operations();
        until(|| load.statistics().operations() > before + 100).await;
        let statistics = load.stop().await;
        assert_eq!((statistics.errors, statistics.last_error), (0, None));
        let expected = PathCounters {
            handovers: 1,
            ..PathCounters::default()
        };
        assert_eq!(disk.counters(), expected);
        // The scripted target answers in one PDU.
        let small = VerifyOptions {
            blocks_per_read: 32,
            ..VerifyOptions::default()
        };
        let report = verify(&disk, &ledger, small, |_| {}).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
    });
}

#[test]
fn a_requested_logout_with_nowhere_to_go_comes_back_to_the_same_portal() {
    on_one_thread(async {
        let target = ScriptedTarget::start(&medium()).await;
        let disk = Disk::open(options(&[&target])).await.unwrap();
        target.script.request_logout();
        until(|| target.script.logouts.get() == 1).await;
        disk.write(0, block(3)).await.unwrap();
        assert_eq!(target.script.logins.get(), 2);
        assert_eq!(disk.counters().retries, 0);
    });
}

#[test]
fn a_path_that_answers_again_before_any_other_is_kept() {
    on_one_thread(async {
        let target = ScriptedTarget::start(&medium()).await;
        let disk = Disk::open(options(&[&target])).await.unwrap();
        target.script.is_mute.send_replace(true);
        // The request in the socket already passes; the second one waits.
        let write = async {
            disk.write(0, block(3)).await?;
            disk.write(0, block(4)).await
        };
        let speak = async {
            sleep(Duration::from_millis(400)).await;
            target.script.is_mute.send_replace(false);
        };
        let (written, ()) = tokio::join!(write, speak);
        written.unwrap();
        assert_eq!(disk.counters(), PathCounters::default());
        assert!(
            disk.gap().longest >= Duration::from_millis(300),
            "{:?}",
            disk.gap()
        );
    });
}

#[test]
fn a_silent_path_is_replaced_and_its_command_sent_again() {
    on_one_thread(async {
        let (first, second) = pair(&medium()).await;
        let disk = disk_at(&first, &second).await;
        first.script.is_mute.send_replace(true);
        disk.write(0, block(3)).await.unwrap();
        disk.write(0, block(4)).await.unwrap();
        assert_eq!(disk.portal(), Some(second.portal));
        let expected = PathCounters {
            failovers: 1,
            silences: 1,
            handovers: 0,
            retries: 1,
        };
        assert_eq!(disk.counters(), expected);
    });
}

#[test]
fn without_any_answer_an_io_ends_in_time() {
    on_one_thread(async {
        let target = ScriptedTarget::start(&medium()).await;
        let give_up = Duration::from_millis(600);
        let options = DiskOptions {
            give_up,
            ..options(&[&target])
        };
        let disk = Disk::open(options).await.unwrap();
        disk.write(0, block(3)).await.unwrap();
        target.script.is_mute.send_replace(true);
        let begun = Instant::now();
        let reads = [disk.read(0, 512), disk.read(512, 512)];
        for result in futures::future::join_all(reads).await {
            // The request in the socket may still pass.
            assert!(
                matches!(result, Ok(_) | Err(Error::AllPathsDown { .. })),
                "{result:?}"
            );
        }
        let failed = disk.read(0, 512).await;
        assert!(
            matches!(failed, Err(Error::AllPathsDown { .. })),
            "{failed:?}"
        );
        assert!(begun.elapsed() < give_up * 3);
    });
}

#[test]
fn a_login_follows_redirections_but_not_in_circles() {
    on_one_thread(async {
        let (first, second) = pair(&medium()).await;
        let options = SessionOptions::new("iqn.2026-11.test:host");
        first.script.redirect.set(Some(second.portal));
        let session = Session::connect(first.portal, TARGET, &options)
            .await
            .unwrap();
        assert_eq!(session.portal(), second.portal);
        second.script.redirect.set(Some(first.portal));
        let circle = Session::connect(first.portal, TARGET, &options).await;
        assert!(matches!(circle.err(), Some(Error::BadRedirect { .. })));
    });
}
