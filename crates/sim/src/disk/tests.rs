//! Disks under faults.

use std::cell::RefCell;
use std::rc::Rc;

use holdfast_runtime::{Allocation, Buffer, Discarded, Disk, DiskError, DiskOptions, NodeId};

use super::*;
use crate::executor::Halt;
use crate::simulation::{Machine, Options, Simulation};

const NODE: NodeId = NodeId(1);
const PAGES: u64 = 64;
const OPTIONS: DiskOptions = DiskOptions {
    size_bytes: PAGES * PAGE_BYTES as u64,
    durable_writes: true,
    allocation: Allocation::Sparse,
};

/// Runs `act` as the process of a node and returns what it returns.
async fn as_process<T: 'static, F: Future<Output = T> + 'static>(
    simulation: &Simulation,
    act: impl FnOnce(Machine) -> F + 'static,
) -> T {
    let result: Rc<RefCell<Option<T>>> = Rc::default();
    let slot = result.clone();
    let (sender, ended) = oneshot::channel::<()>();
    simulation.start(NODE, move |machine| {
        let future = act(machine);
        async move {
            let output = future.await;
            *slot.borrow_mut() = Some(output);
            drop(sender);
        }
    });
    let _ = ended.await;
    simulation
        .runtime()
        .sleep(std::time::Duration::from_millis(1))
        .await;
    result.take().expect("the process has come to its end")
}

fn in_world<F: Future<Output = ()> + 'static>(
    seed: u64,
    scenario: impl FnOnce(Simulation) -> F,
) -> Result<(), Halt> {
    Simulation::run(Options::new(seed), |simulation| {
        simulation.add_host(NODE);
        scenario(simulation)
    })
    .result
}

async fn open(machine: &Machine, options: DiskOptions) -> Result<Rc<dyn Disk>, DiskError> {
    machine.directory.open("area", options).await
}

fn filled(byte: u8) -> Buffer {
    Buffer::padded_from(&[byte; PAGE_BYTES])
}

async fn fill(machine: Machine, options: DiskOptions) {
    let disk = open(&machine, options).await.expect("opens");
    for page in 0..PAGES {
        if page == PAGES - 1 {
            // Only what was written some time before the last write may be damaged.
            machine
                .runtime
                .sleep(std::time::Duration::from_millis(20))
                .await;
        }
        let data = filled(page as u8 + 1);
        disk.write(page * PAGE_BYTES as u64, data)
            .await
            .expect("written");
    }
}

/// The pages that are not what [`fill`] wrote.
async fn wrong_pages(machine: Machine) -> Vec<u64> {
    let disk = open(&machine, OPTIONS).await.expect("opens");
    let mut wrong = Vec::new();
    for page in 0..PAGES {
        let right = match disk.read(page * PAGE_BYTES as u64, PAGE_BYTES).await {
            Ok(data) => data.iter().all(|byte| *byte == page as u8 + 1),
            Err(_) => false,
        };
        if !right {
            wrong.push(page);
        }
    }
    wrong
}

#[test]
fn contents_outlive_processes_and_durable_ones_power_cuts() -> Result<(), Halt> {
    in_world(1, |simulation| async move {
        as_process(&simulation, |machine| fill(machine, OPTIONS)).await;
        assert!(as_process(&simulation, wrong_pages).await.is_empty());
        simulation.cut_power(&[NODE]);
        simulation.restore_power(NODE);
        assert!(as_process(&simulation, wrong_pages).await.is_empty());
        assert_eq!(simulation.faults().get(FaultClass::LostUnsyncedWrite), 0);
    })
}

#[test]
fn unsynced_contents_outlive_processes_but_not_every_power_cut() -> Result<(), Halt> {
    let options = DiskOptions {
        durable_writes: false,
        ..OPTIONS
    };
    for seed in 0..6 {
        in_world(seed, |simulation| async move {
            as_process(&simulation, move |machine| fill(machine, options)).await;
            assert!(as_process(&simulation, wrong_pages).await.is_empty());
            simulation.cut_power(&[NODE]);
            simulation.restore_power(NODE);
            let wrong = as_process(&simulation, wrong_pages).await.len() as u64;
            assert_eq!(
                simulation.faults().get(FaultClass::LostUnsyncedWrite),
                wrong
            );
        })?;
    }
    Ok(())
}

#[test]
fn a_process_killed_in_a_write_never_hears_of_it_and_may_leave_it_torn() -> Result<(), Halt> {
    let mut torn = 0;
    for seed in 0..10 {
        let count = Rc::new(Cell::new(0));
        let counted = count.clone();
        in_world(seed, |simulation| async move {
            simulation.start(NODE, |machine| async move {
                let disk = open(&machine, OPTIONS).await.expect("opens");
                let data = Buffer::padded_from(&[7; 16 * PAGE_BYTES]);
                for _ in 0.. {
                    disk.write(0, data.clone()).await.expect("written");
                }
            });
            simulation
                .runtime()
                .sleep(std::time::Duration::from_micros(1_777))
                .await;
            simulation.kill(NODE);
            simulation
                .runtime()
                .sleep(std::time::Duration::from_secs(1))
                .await;
            counted.set(simulation.faults().get(FaultClass::TornWrite));
        })?;
        torn += count.get();
    }
    assert!(torn > 0);
    Ok(())
}

#[test]
fn damage_needs_the_policys_consent_and_keeps_to_its_budget() -> Result<(), Halt> {
    in_world(2, |simulation| async move {
        as_process(&simulation, |machine| fill(machine, OPTIONS)).await;
        let disks = simulation.disks(NODE);
        assert!(!disks.damage(Damage::FlipBits));
        disks.set_policy(DamagePolicy {
            areas: vec!["other".to_owned()],
            budget: 9,
            ..DamagePolicy::default()
        });
        assert!(!disks.damage(Damage::FlipBits));
        disks.set_policy(DamagePolicy {
            areas: vec!["area".to_owned()],
            budget: 2,
            ..DamagePolicy::default()
        });
        assert!(disks.damage(Damage::FlipBits) && disks.damage(Damage::Unreadable));
        assert!(!disks.damage(Damage::FlipBits), "the budget is spent");
        let wrong = as_process(&simulation, wrong_pages).await;
        assert!((1..=2).contains(&wrong.len()), "{wrong:?}");
        let counts = simulation.faults();
        assert_eq!(counts.get(FaultClass::Corruption), 1);
        assert_eq!(counts.get(FaultClass::UnreadablePage), 1);
    })
}

#[test]
fn a_lost_and_a_misdirected_write_are_acknowledged_and_wrong() -> Result<(), Halt> {
    for damage in [Damage::LoseNextWrite, Damage::MisdirectNextWrite] {
        in_world(3, move |simulation| async move {
            as_process(&simulation, |machine| fill(machine, OPTIONS)).await;
            let disks = simulation.disks(NODE);
            disks.set_policy(DamagePolicy {
                areas: vec!["area".to_owned()],
                budget: 1,
                ..DamagePolicy::default()
            });
            assert!(disks.damage(damage));
            as_process(&simulation, |machine| async move {
                let disk = open(&machine, OPTIONS).await.expect("opens");
                disk.write(5 * PAGE_BYTES as u64, filled(200))
                    .await
                    .expect("acknowledged");
                let data = disk
                    .read(5 * PAGE_BYTES as u64, PAGE_BYTES)
                    .await
                    .expect("read");
                assert_eq!(data[0], 6, "the old contents");
            })
            .await;
            let wrong = as_process(&simulation, wrong_pages).await;
            assert_eq!(
                wrong.len(),
                usize::from(damage == Damage::MisdirectNextWrite)
            );
            assert_eq!(simulation.faults().get(FaultClass::MisplacedWrite), 1);
        })?;
    }
    Ok(())
}

#[test]
fn a_lying_sync_is_acknowledged_and_a_power_cut_shows_it() -> Result<(), Halt> {
    let volatile = DiskOptions {
        durable_writes: false,
        ..OPTIONS
    };
    // A power cut keeps all, some or none of what is not durable.
    let lost = Rc::new(Cell::new(0));
    for seed in 0..10 {
        let lost = lost.clone();
        in_world(seed, move |simulation| async move {
            as_process(&simulation, |machine| fill(machine, OPTIONS)).await;
            let disks = simulation.disks(NODE);
            disks.set_policy(DamagePolicy {
                areas: vec!["area".to_owned()],
                budget: 1,
                ..DamagePolicy::default()
            });
            assert!(disks.damage(Damage::LieAtNextSync));
            as_process(&simulation, move |machine| async move {
                let disk = open(&machine, volatile).await.expect("opens");
                disk.write(0, filled(200)).await.expect("written");
                disk.sync().await.expect("acknowledged");
            })
            .await;
            let counts = simulation.faults();
            assert_eq!(counts.get(FaultClass::LyingSync), 1);
            simulation.cut_power(&[NODE]);
            lost.set(lost.get() + counts.get(FaultClass::LostUnsyncedWrite));
        })?;
    }
    assert!(lost.get() > 0, "no power cut showed the lie");
    Ok(())
}

#[test]
fn a_full_disk_refuses_new_pages_and_takes_overwrites() -> Result<(), Halt> {
    in_world(4, |simulation| async move {
        let world = simulation.clone();
        as_process(&simulation, move |machine| async move {
            let disk = open(&machine, OPTIONS).await.expect("opens");
            disk.write(0, filled(1)).await.expect("written");
            world.disks(NODE).set_full(true);
            disk.write(0, filled(2))
                .await
                .expect("an overwrite needs no space");
            let refused = disk.write(PAGE_BYTES as u64, filled(2)).await;
            assert!(matches!(refused, Err(DiskError::Full { .. })));
            let grown = DiskOptions {
                size_bytes: OPTIONS.size_bytes * 2,
                allocation: Allocation::Written,
                ..OPTIONS
            };
            let refused = open(&machine, grown).await.map(|_| ());
            assert!(matches!(refused, Err(DiskError::Full { .. })));
            world.disks(NODE).heal();
            disk.write(PAGE_BYTES as u64, filled(2))
                .await
                .expect("space again");
            let discarded = disk
                .discard(0, PAGE_BYTES as u64)
                .await
                .expect("given back");
            world.disks(NODE).set_full(true);
            let refused = disk.write(0, filled(3)).await;
            assert_eq!(refused.is_err(), discarded == Discarded::Done);
        })
        .await;
    })
}

#[test]
fn a_slow_disk_is_slow_and_a_failing_one_fails() -> Result<(), Halt> {
    in_world(5, |simulation| async move {
        let world = simulation.clone();
        as_process(&simulation, move |machine| async move {
            let disk = open(&machine, OPTIONS).await.expect("opens");
            let begin = machine.runtime.now();
            disk.write(0, filled(1)).await.expect("written");
            let healthy = machine.runtime.now() - begin;
            world.disks(NODE).set_slow_factor(1_000);
            let begin = machine.runtime.now();
            disk.write(0, filled(1)).await.expect("written");
            assert!(machine.runtime.now() - begin > healthy * 50);
            world.disks(NODE).heal();
            world.disks(NODE).set_error_ppm(1_000_000);
            assert!(disk.write(0, filled(9)).await.is_err());
            assert!(disk.read(0, PAGE_BYTES).await.is_err());
            assert!(disk.sync().await.is_err());
        })
        .await;
        assert_eq!(simulation.faults().get(FaultClass::DiskError), 3);
        assert_eq!(simulation.faults().get(FaultClass::SlowDisk), 1);
    })
}
