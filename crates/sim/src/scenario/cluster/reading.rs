//! Readers that stay: they read where everybody writes, at an owner's portal whatever happens to
//! it, and give each read up soon. Ordinary clients leave an owner that does not answer, so nobody
//! would be there to see what it says in the seconds after it was superseded.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::client::{Ended, Workload};

/// A reader's patience with one read.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long a reader stays at one portal.
const STAY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// The longest pause between two reads.
const THINK: Duration = Duration::from_millis(40);
/// How often a reader compares and writes instead: a comparison that fails tells what a read does.
const COMPARES_PPM: u32 = 250_000;
/// A pause after a portal was not there at all.
const ABSENT: Duration = Duration::from_millis(20);

/// Reads until `stop`.
pub(super) async fn keep_reading(workload: Rc<Workload>, reader: u64, stop: Rc<Cell<bool>>) {
    let simulation = workload.nodes.simulation.clone();
    let runtime = simulation.runtime();
    let random = simulation.random(&format!("reader {reader}"));
    while !stop.get() {
        let owners = workload.nodes.owners();
        let all = &workload.nodes.shape.nodes;
        let Some(portal) = random.pick(&owners).or_else(|| random.pick(all)).copied() else {
            return;
        };
        let leaves = runtime.now() + random.duration(STAY.0, STAY.1);
        while runtime.now() < leaves && !stop.get() {
            let range = workload.focused(&random);
            let began = runtime.now();
            let ended = match random.chance(COMPARES_PPM) {
                true => {
                    let block = range.part(0, 1);
                    workload
                        .compare_and_write(reader, portal, block, PATIENCE)
                        .await
                }
                false => workload.read(reader, portal, range, PATIENCE).await,
            };
            let pause = match ended {
                Ended::NotServed if runtime.now() == began => ABSENT,
                // The moments in which reads fail are those that matter.
                Ended::NotServed => Duration::ZERO,
                Ended::Served | Ended::Damaged => random.duration(Duration::ZERO, THINK),
            };
            runtime.sleep(pause).await;
        }
    }
}
