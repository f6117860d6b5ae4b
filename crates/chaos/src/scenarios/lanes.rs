//! The load of a host that leaves: writes that it keeps under way, and what it does with them
//! afterwards.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::ledger::WriteTicket;
use crate::register::{Moment, Outcome};
use crate::world::{COMMON_BLOCKS, HOST_BLOCKS, OpenWrite, Path, World, is_refusal};

/// Writes that a host keeps under way, each at blocks of its own.
const LANES: u32 = 32;
/// More of them that begin right after the fault: the portal has not read those.
const LATE_LANES: u32 = 16;
const LANE_BLOCKS: u32 = 2;
const LOOK_PAUSE: Duration = Duration::from_millis(60);

/// Writes that are under way, one for each lane, and where writes went that were lost with the
/// path.
pub(super) struct Lanes {
    open: RefCell<Vec<Option<(WriteTicket, Instant)>>>,
    lost: RefCell<Vec<Extent>>,
    /// Told when the late ones may begin.
    pub(super) late: Notify,
    /// The longest time that a command took, its loss included.
    longest: Cell<Duration>,
}

/// First block and how many.
pub(super) type Extent = (u32, u32);

impl Lanes {
    pub(super) fn new() -> Self {
        Self {
            open: RefCell::new(vec![None; (LANES + LATE_LANES) as usize]),
            lost: RefCell::default(),
            late: Notify::new(),
            longest: Cell::default(),
        }
    }

    fn extent(lane: u32) -> Extent {
        const { assert!((LANES + LATE_LANES) * LANE_BLOCKS <= HOST_BLOCKS) };
        (COMMON_BLOCKS + lane * LANE_BLOCKS, LANE_BLOCKS)
    }

    /// Tells the ledger; answers where all writes of unknown outcome went.
    pub(super) fn give_up(&self, world: &World, at: Moment) -> Vec<Extent> {
        let mut left = self.lost.take();
        for (ticket, _) in self.open.take().into_iter().flatten() {
            world.ledger.end_write(ticket, Outcome::GivenUp(at));
            left.push((ticket.first, ticket.blocks));
        }
        left
    }

    /// What is still under way included.
    pub(super) fn longest(&self) -> Duration {
        let open = self.open.borrow();
        let running = open.iter().flatten().map(|(_, since)| since.elapsed());
        running.fold(self.longest.get(), Duration::max)
    }
}

/// Keeps every lane busy until the path is lost. Dropped, it leaves what is under way in `lanes`.
pub(super) async fn press(world: &World, path: &Path, lanes: &Lanes) {
    let all = (0..LANES + LATE_LANES).map(|lane| async move {
        let (first, blocks) = Lanes::extent(lane);
        if lane >= LANES {
            lanes.late.notified().await;
        }
        while path.is_good() {
            let (ticket, data) = world.ledger.begin_write(0, first, blocks, path.doer);
            let since = Instant::now();
            lanes.open.borrow_mut()[lane as usize] = Some((ticket, since));
            let mut open = OpenWrite::new(ticket);
            let result = world.write(path, &mut open, data).await;
            lanes.open.borrow_mut()[lane as usize] = None;
            lanes.longest.set(lanes.longest.get().max(since.elapsed()));
            match result {
                Ok(()) => {}
                Err(error) if is_refusal(&error) => sleep(Duration::from_millis(10)).await,
                Err(_) => lanes.lost.borrow_mut().push((first, blocks)),
            }
        }
    });
    join_all(all).await;
}

/// Writes all of it through the first of the paths that takes it; answers when that was done.
pub(super) async fn repeat(world: &World, paths: &[&Path], extents: &[Extent]) -> Moment {
    let all = extents.iter().map(|(first, blocks)| async move {
        let mut turn = 0;
        loop {
            let path = paths[turn % paths.len()];
            let (ticket, data) = world.ledger.begin_write(0, *first, *blocks, path.doer);
            let mut open = OpenWrite::new(ticket);
            match world.write(path, &mut open, data).await {
                Ok(()) => return,
                Err(error) if is_refusal(&error) => sleep(Duration::from_millis(10)).await,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
            turn += 1;
        }
    });
    // If no path takes it, what is judged afterwards says so.
    let _ = timeout(Duration::from_secs(30), join_all(all)).await;
    world.ledger.now()
}

/// Reads all of it again and again until the deadline.
pub(super) async fn look(world: &World, paths: &[&Path], extents: &[Extent], deadline: Instant) {
    let reading = async {
        loop {
            for path in paths {
                let reads = extents
                    .iter()
                    .map(|(first, blocks)| world.read(path, *first, *blocks));
                join_all(reads).await;
                sleep(LOOK_PAUSE).await;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = sleep_until(deadline) => {}
    }
}
