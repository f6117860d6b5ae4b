//! A client that stays at its portal whatever happens, one command at a time: it measures gaps,
//! and reads where others write.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::ledger::Doer;
use crate::random::Random;
use crate::register::Outcome;
use crate::world::{COMMON_BLOCKS, Leaving, OpenWrite, Path, World};

/// A login that takes longer is tried again.
const LOGIN_LIMIT: Duration = Duration::from_secs(2);
/// No host waits longer for a command; most give up much sooner.
const PATIENCE: Duration = Duration::from_secs(15);
const RETRY_PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MS: (u64, u64) = (40, 120);

/// Serves until the world is over.
pub(crate) async fn stay(world: Rc<World>, volume: u32, doer: Doer, mut random: Random) {
    let (slot, portal) = (volume as usize, usize::from(doer.portal));
    let mut path: Option<Path> = None;
    while !world.is_over.get() {
        world.gaps.want(slot, portal, world.ledger.now());
        let here = match path.take().filter(Path::is_good) {
            Some(here) => here,
            None => match world.connect(volume, doer, LOGIN_LIMIT).await {
                Ok(new) => new,
                Err(_) => {
                    sleep(RETRY_PAUSE).await;
                    continue;
                }
            },
        };
        if act(&world, &here, volume, &mut random).await {
            world.gaps.complete(slot, portal, world.ledger.now());
            sleep(random.millis(PAUSE_MS.0, PAUSE_MS.1)).await;
        } else {
            sleep(RETRY_PAUSE).await;
        }
        path = Some(here);
    }
}

/// Whether a command has completed.
async fn act(world: &World, path: &Path, volume: u32, random: &mut Random) -> bool {
    if random.percent(50) {
        let block = random.below(COMMON_BLOCKS as usize) as u32;
        let (ticket, data) = world.ledger.begin_write(volume, block, 1, path.doer);
        let mut open = OpenWrite::new(ticket);
        let result = timeout(PATIENCE, world.write(path, &mut open, data)).await;
        if !open.is_ended {
            let at = world.leave(path, Leaving::Reset).await;
            world.ledger.end_write(ticket, Outcome::GivenUp(at));
        }
        return matches!(result, Ok(Ok(())));
    }
    let blocks = 1 + random.below(4) as u32;
    let first = random.below((world.blocks - blocks + 1) as usize) as u32;
    match timeout(PATIENCE, world.read(path, first, blocks)).await {
        Ok(result) => result.is_ok(),
        Err(_) => {
            world.ledger.count_unanswered_read();
            world.leave(path, Leaving::Reset).await;
            false
        }
    }
}
