//! Fires episodes, one after another, and takes down what clients noticed of each.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::sleep;

use crate::cluster::Cluster;
use crate::faults::{Act, Class, Episode, Means, Pace, draw};
use crate::gaps::Gap;
use crate::ledger::seconds;
use crate::random::Random;
use crate::register::Moment;
use crate::world::World;

/// Until all copies are in sync again.
const WHOLE_LIMIT: Duration = Duration::from_secs(90);
/// Until every client is served again at its own portal.
const SERVED_LIMIT: Duration = Duration::from_secs(40);
/// Until a node with a full file system has ended; load writes some megabytes a second.
const FULL_LIMIT: Duration = Duration::from_secs(30);
/// An episode starts as many times as this at most before it counts as impossible.
const DRAWS: usize = 4;

/// What came of an episode.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Fired {
    #[serde(flatten)]
    pub(crate) episode: Episode,
    pub(crate) from_s: f64,
    /// When everything had been undone.
    pub(crate) undone_s: f64,
    /// When the cluster was whole and every client served.
    pub(crate) whole_s: f64,
    /// The longest gap of a healthy path.
    pub(crate) gap: Option<Told>,
    /// This program's own longest standstill meanwhile.
    pub(crate) stall_ms: f64,
    /// What operators were answered that failed.
    pub(crate) refusals: Vec<String>,
}

/// A gap for people.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Told {
    pub(crate) ms: f64,
    pub(crate) volume: usize,
    pub(crate) portal: usize,
    pub(crate) from_s: f64,
}

impl Fired {
    /// The gap without what this program itself stood still.
    pub(crate) fn judged(&self) -> Option<Duration> {
        let gap = self.gap.as_ref()?.ms - self.stall_ms;
        Some(Duration::from_secs_f64(gap.max(0.0) / 1000.0))
    }
}

/// See the module's header.
pub(crate) struct Nemesis<'a> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) world: Rc<World>,
    pub(crate) random: Random,
    pub(crate) pace: Pace,
    pub(crate) means: Means,
    /// Nodes whose file systems are full on purpose.
    filled: BTreeSet<usize>,
    paused: BTreeSet<usize>,
    refusals: Vec<String>,
    /// What did not heal, and nodes that ended by themselves.
    pub(crate) failures: Vec<String>,
}

impl<'a> Nemesis<'a> {
    pub(crate) fn new(
        cluster: &'a mut Cluster,
        world: &Rc<World>,
        random: Random,
        pace: Pace,
        means: Means,
    ) -> Self {
        Self {
            cluster,
            world: Rc::clone(world),
            random,
            pace,
            means,
            filled: BTreeSet::new(),
            paused: BTreeSet::new(),
            refusals: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Draws and fires one episode of a class. `None` if there was nothing to do.
    pub(crate) async fn strike(&mut self, class: Class) -> anyhow::Result<Option<Fired>> {
        for _ in 0..DRAWS {
            let offices = self.cluster.offices().await?;
            let nodes = self.cluster.size();
            let drawn = draw(
                class,
                &mut self.random,
                &offices,
                nodes,
                self.pace,
                self.means,
            );
            if let Some(episode) = drawn {
                return self.fire(episode).await.map(Some);
            }
        }
        Ok(None)
    }

    async fn fire(&mut self, episode: Episode) -> anyhow::Result<Fired> {
        let from = self.world.ledger.now();
        for act in &episode.acts {
            // A node that does not end, or has ended by itself: the run goes on, and fails.
            if let Err(error) = self.act(act).await {
                self.failures.push(format!("{act}: {error:#}"));
                break;
            }
        }
        self.undo().await?;
        let undone = self.world.ledger.now();
        self.until_whole(undone).await?;
        let whole = self.world.ledger.now();
        let counts = |portal: usize| !episode.disturbed.contains(&portal);
        let gap = self.world.gaps.longest(from, whole, counts);
        let stall = self.world.gaps.longest_stall(from, whole);
        let fired = Fired {
            episode,
            from_s: seconds(from),
            undone_s: seconds(undone),
            whole_s: seconds(whole),
            gap: gap.map(told),
            stall_ms: stall.as_secs_f64() * 1000.0,
            refusals: std::mem::take(&mut self.refusals),
        };
        say(&fired);
        self.world.ledger.check();
        sleep(self.random.millis(300, 1200)).await;
        Ok(fired)
    }

    pub(crate) async fn act(&mut self, act: &Act) -> anyhow::Result<()> {
        match act {
            Act::Kill(nodes) => self.cluster.kill(nodes).await,
            Act::Terminate(nodes) => self.cluster.terminate(nodes).await,
            Act::Start(nodes) => {
                for node in nodes {
                    self.cluster.start(*node, None)?;
                }
                Ok(())
            }
            Act::Pause(nodes) => {
                for node in nodes {
                    self.cluster.pause(*node)?;
                    self.paused.insert(*node);
                }
                Ok(())
            }
            Act::Resume(nodes) => {
                for node in nodes {
                    self.cluster.resume(*node)?;
                    self.paused.remove(node);
                }
                Ok(())
            }
            Act::Cut(ways) => self.cluster.network.cut_exactly(ways).await,
            Act::Move { volume, to } => {
                let moved = self.cluster.move_volume(*volume, *to).await;
                self.note(act, moved);
                Ok(())
            }
            Act::Grow(volume) => {
                let grown = self.cluster.grow_volume(*volume).await;
                self.note(act, grown);
                Ok(())
            }
            Act::Fill(node) => {
                self.filled.insert(*node);
                self.cluster.fill_file_system(*node).await?;
                if self.cluster.reap(*node, FULL_LIMIT).await.is_err() {
                    self.refusals
                        .push(format!("node {} lives on: killed", node + 1));
                    self.cluster.kill(&[*node]).await?;
                }
                Ok(())
            }
            Act::Empty(node) => {
                self.filled.remove(node);
                self.cluster.empty_file_system(*node)
            }
            Act::Wait(time) => {
                sleep(*time).await;
                Ok(())
            }
        }
    }

    fn note(&mut self, act: &Act, result: anyhow::Result<()>) {
        if let Err(error) = result {
            self.refusals.push(format!("{act}: {error:#}"));
        }
    }

    /// Whatever is still done to the cluster ends.
    pub(crate) async fn undo(&mut self) -> anyhow::Result<()> {
        self.cluster.network.cut_exactly(&BTreeSet::new()).await?;
        for node in std::mem::take(&mut self.paused) {
            self.cluster.resume(node)?;
        }
        for node in std::mem::take(&mut self.filled) {
            self.cluster.empty_file_system(node)?;
        }
        for (node, how) in self.cluster.ended()? {
            self.failures
                .push(format!("node {} ended by itself: {how}", node + 1));
        }
        for node in 0..self.cluster.size() {
            if !self.cluster.is_running(node) {
                self.cluster.start(node, None)?;
            }
        }
        Ok(())
    }

    /// What does not heal is noted; an error if it does not do so with a second start either.
    pub(crate) async fn until_whole(&mut self, since: Moment) -> anyhow::Result<()> {
        if let Err(error) = self.cluster.until_whole(WHOLE_LIMIT).await {
            println!(
                "{:9.3}  NOT WHOLE: {error:#}",
                seconds(self.world.ledger.now())
            );
            self.failures.push(format!("{error:#}"));
            self.undo().await?;
            self.cluster.until_whole(WHOLE_LIMIT).await?;
        }
        let limit = self.world.ledger.now() + SERVED_LIMIT.as_micros() as Moment;
        loop {
            let waiting = self.world.gaps.waiting_since(since);
            let now = self.world.ledger.now();
            if waiting.is_empty() {
                return Ok(());
            }
            if now > limit {
                let told = waiting
                    .iter()
                    .map(|(volume, portal)| format!("volume {volume} at portal {}", portal + 1));
                let told: Vec<String> = told.collect();
                let told = format!("clients are not served again: {}", told.join(", "));
                println!("{:9.3}  NOT SERVED: {told}", seconds(now));
                self.failures.push(told);
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn told(gap: Gap) -> Told {
    Told {
        ms: gap.length().as_secs_f64() * 1000.0,
        volume: gap.volume,
        portal: gap.portal + 1,
        from_s: seconds(gap.from),
    }
}

fn say(fired: &Fired) {
    let acts: Vec<String> = fired.episode.acts.iter().map(ToString::to_string).collect();
    let gap = fired.gap.as_ref().map_or("none".to_owned(), |gap| {
        format!(
            "{:.0} ms (volume {}, portal {})",
            gap.ms, gap.volume, gap.portal
        )
    });
    println!(
        "{:9.3}  {:?}: {}; gap {gap}, whole after {:.1} s, stall {:.0} ms",
        fired.from_s,
        fired.episode.class,
        acts.join(", "),
        fired.whole_s - fired.undone_s,
        fired.stall_ms,
    );
    for refusal in &fired.refusals {
        println!("{:>9}  refused: {refusal}", "");
    }
}
