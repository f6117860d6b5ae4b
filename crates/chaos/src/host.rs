//! A host with a path through every portal that gives paths up as dm-multipath, ESXi or Windows
//! do: after a while without an answer it resets or closes the session, repeats what was not
//! acknowledged through another portal, goes on and overwrites.
//!
//! Blocks that were under way on a path that was given up are looked at again and again
//! afterwards, some of them without being overwritten any more: what lands late is seen.

use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{sleep, timeout};

use crate::ledger::Doer;
use crate::random::Random;
use crate::register::{GHOST_LIMIT, Moment, Outcome};
use crate::world::{COMMON_BLOCKS, HOST_BLOCKS, Leaving, OpenWrite, Path, World};

const LOGIN_LIMIT: Duration = Duration::from_millis(1500);
const READ_LIMIT: Duration = Duration::from_secs(2);
/// A portal that did not let us in is left alone for so long.
const AVOIDED: Moment = 400_000;
const RETRY_PAUSE: Duration = Duration::from_millis(15);
/// How often blocks are looked at that a path was given up with.
const LOOK_PERIOD: Moment = 400_000;

/// What is written in one go: first block and how many.
type Extent = (u32, u32);

/// Blocks that are only read for a while.
struct Quiet {
    extent: Extent,
    until: Moment,
    next_look: Moment,
}

/// See the module's header.
pub(crate) struct Host {
    world: Rc<World>,
    volume: u32,
    client: u16,
    first: u32,
    paths: Vec<Option<Path>>,
    avoided_until: Vec<Moment>,
    current: usize,
    quiet: Vec<Quiet>,
    random: Random,
}

impl Host {
    /// The `number`th host of the volume.
    pub(crate) fn new(
        world: &Rc<World>,
        volume: u32,
        number: u32,
        client: u16,
        mut random: Random,
    ) -> Self {
        let portals = world.portals.len();
        Self {
            world: Rc::clone(world),
            volume,
            client,
            first: COMMON_BLOCKS + number * HOST_BLOCKS,
            paths: vec![None; portals],
            avoided_until: vec![0; portals],
            current: random.below(portals),
            quiet: Vec::new(),
            random,
        }
    }

    /// Works until the world is over.
    pub(crate) async fn work(mut self) {
        while !self.world.is_over.get() {
            self.round().await;
            self.look().await;
            sleep(self.random.millis(10, 80)).await;
        }
    }

    /// Writes something, through as many paths as it takes, and looks at it.
    async fn round(&mut self) {
        if self.random.percent(5) {
            self.current = self.random.below(self.paths.len());
        }
        let extents = self.extents();
        if !self.write_all(&extents).await {
            if let Some((first, blocks)) = self.random.choose(&extents) {
                self.read_somewhere(first, blocks).await;
            }
            return;
        }
        // A path was given up: overwrite at once what was repeated, and keep an eye on it.
        let again = 1 + self.random.below(2);
        for _ in 0..again {
            self.write_all(&extents).await;
        }
        let now = self.world.ledger.now();
        let quiet = self
            .random
            .choose(&[2_000_000, 6_000_000, 20_000_000])
            .unwrap_or(0);
        self.quiet.extend(extents.iter().map(|extent| Quiet {
            extent: *extent,
            until: now + quiet,
            next_look: now + GHOST_LIMIT + 30_000,
        }));
    }

    /// Whether a path was given up on the way.
    async fn write_all(&mut self, extents: &[Extent]) -> bool {
        let mut left = extents.to_vec();
        let mut has_given_up = false;
        while !left.is_empty() && !self.world.is_over.get() {
            let portal = self.current;
            let Some(path) = self.path(portal).await else {
                self.turn();
                sleep(RETRY_PAUSE).await;
                continue;
            };
            let sent = self.send(&path, &left).await;
            left = sent.left;
            if sent.is_given_up {
                has_given_up = true;
                self.paths[portal] = None;
                self.avoided_until[portal] = self.world.ledger.now() + AVOIDED;
                self.turn();
            } else if !left.is_empty() {
                // Refused: this or another path, a little later.
                if self.random.percent(50) {
                    self.turn();
                }
                sleep(RETRY_PAUSE).await;
            }
        }
        has_given_up
    }

    /// Sends writes on one path and waits as long as a host does.
    async fn send(&mut self, path: &Path, extents: &[Extent]) -> Sent {
        let patience = self.patience();
        let world = Rc::clone(&self.world);
        let mut open = Vec::new();
        let mut data = Vec::new();
        for (first, blocks) in extents {
            let (ticket, bytes) = world
                .ledger
                .begin_write(self.volume, *first, *blocks, path.doer);
            open.push(OpenWrite::new(ticket));
            data.push(bytes);
        }
        let mut results = vec![None; extents.len()];
        let all = open.iter_mut().zip(data).zip(&mut results);
        let all = all.map(|((open, data), result)| async {
            *result = Some(world.write(path, open, data).await);
        });
        let in_time = timeout(patience, join_all(all)).await.is_ok();
        let mut is_given_up = !path.is_good();
        if !in_time {
            let how = if self.random.percent(65) {
                Leaving::Reset
            } else {
                Leaving::Close
            };
            let at = world.leave(path, how).await;
            is_given_up = true;
            for open in open.iter().filter(|open| !open.is_ended) {
                world.ledger.end_write(open.ticket, Outcome::GivenUp(at));
            }
        }
        let results = extents.iter().zip(results);
        let left = results.filter(|(_, result)| !matches!(result, Some(Ok(()))));
        Sent {
            left: left.map(|(extent, _)| *extent).collect(),
            is_given_up,
        }
    }

    /// Looks at what may change behind our back.
    async fn look(&mut self) {
        let now = self.world.ledger.now();
        self.quiet.retain(|quiet| quiet.until > now);
        let due = self.quiet.iter_mut().filter(|quiet| quiet.next_look <= now);
        let mut extents = Vec::new();
        for quiet in due {
            quiet.next_look = now + LOOK_PERIOD;
            extents.push(quiet.extent);
        }
        for (first, blocks) in extents {
            self.read_somewhere(first, blocks).await;
        }
    }

    async fn read_somewhere(&mut self, first: u32, blocks: u32) {
        let other = self.random.percent(50);
        let portal = if other {
            self.random.below(self.paths.len())
        } else {
            self.current
        };
        let Some(path) = self.path(portal).await else {
            return;
        };
        let world = Rc::clone(&self.world);
        match timeout(READ_LIMIT, world.read(&path, first, blocks)).await {
            Ok(_) => {}
            Err(_) => {
                world.ledger.count_unanswered_read();
                world.leave(&path, Leaving::Reset).await;
                self.paths[portal] = None;
                self.avoided_until[portal] = world.ledger.now() + AVOIDED;
                if portal == self.current {
                    self.turn();
                }
            }
        }
    }

    /// A session at a portal, made if need be; `None` if there is none to be had.
    async fn path(&mut self, portal: usize) -> Option<Path> {
        if let Some(path) = self.paths[portal].as_ref().filter(|path| path.is_good()) {
            return Some(path.clone());
        }
        self.paths[portal] = None;
        if self.world.ledger.now() < self.avoided_until[portal] {
            return None;
        }
        let doer = Doer {
            client: self.client,
            portal: portal as u16,
        };
        match self.world.connect(self.volume, doer, LOGIN_LIMIT).await {
            Ok(path) => {
                self.paths[portal] = Some(path.clone());
                Some(path)
            }
            Err(_) => {
                self.avoided_until[portal] = self.world.ledger.now() + AVOIDED;
                None
            }
        }
    }

    fn turn(&mut self) {
        let step = 1 + self.random.below(self.paths.len() - 1);
        self.current = (self.current + step) % self.paths.len();
    }

    /// As short as fast_io_fail_tmo, as long as an operating system's own time-outs; and now and
    /// then a host is reset while all is well.
    fn patience(&mut self) -> Duration {
        match self.random.below(100) {
            0..3 => self.random.millis(0, 6),
            3..20 => self.random.millis(250, 1000),
            20..70 => self.random.millis(1000, 3000),
            70..90 => self.random.millis(3000, 7000),
            _ => self.random.millis(7000, 12_000),
        }
    }

    /// Disjoint, and none that is to be left alone.
    fn extents(&mut self) -> Vec<Extent> {
        let mut taken: Vec<Extent> = self.quiet.iter().map(|quiet| quiet.extent).collect();
        let mut extents = Vec::new();
        for _ in 0..1 + self.random.below(6) {
            let blocks = match self.random.below(20) {
                0..10 => 1,
                10..19 => 1 + self.random.below(6) as u32,
                // More than goes out without being asked for.
                _ => 40,
            };
            let first = self.first + self.random.below((HOST_BLOCKS - blocks + 1) as usize) as u32;
            let overlaps = |other: &Extent| first < other.0 + other.1 && other.0 < first + blocks;
            if !taken.iter().any(overlaps) {
                taken.push((first, blocks));
                extents.push((first, blocks));
            }
        }
        extents
    }
}

/// What came of writes on one path.
struct Sent {
    left: Vec<Extent>,
    is_given_up: bool,
}
