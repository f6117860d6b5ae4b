//! The nodes of a cluster: what they are asked, what they use, and how they are killed.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use holdfast::fleet::{Fleet, FleetOptions};
use holdfast_api::{
    Authentication, Client, ClientError, NewVolume, NodeState, ProblemKind, Stalls, VolumeState,
    VolumeStatus, WhichVolumes,
};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

/// How often the cluster is asked whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// One command of the CLI.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Of each node: first writes to 20,000 slices fit three times over.
const HOME_BYTES: u64 = 16 << 30;
const JOURNAL_BYTES: u64 = 256 << 20;

/// See the module's header.
pub(crate) struct Cluster {
    pub(crate) fleet: Fleet,
    /// The node whose API is asked, counted from zero.
    pub(crate) asked: usize,
    binary: PathBuf,
    place: PathBuf,
    /// Clock ticks a second, as the kernel counts processor time.
    ticks: f64,
}

/// What all nodes use.
#[derive(Clone, Debug)]
pub(crate) struct Use {
    at: Instant,
    /// Of all nodes together, since their start.
    processor: Duration,
    /// Of each node.
    pub(crate) resident_bytes: Vec<u64>,
    /// Bytes that each node has caused to be written to disks.
    pub(crate) written_bytes: Vec<u64>,
}

impl Use {
    pub(crate) fn resident_most(&self) -> u64 {
        self.resident_bytes.iter().copied().max().unwrap_or(0)
    }

    /// Processor time from an earlier moment to this, in percent of a core.
    pub(crate) fn percent_since(&self, earlier: &Self) -> f64 {
        let spent = self.processor.saturating_sub(earlier.processor);
        let passed = self.at - earlier.at;
        100.0 * spent.as_secs_f64() / passed.as_secs_f64().max(1e-9)
    }
}

impl Cluster {
    pub(crate) async fn start(
        binary: PathBuf,
        place: PathBuf,
        nodes: usize,
    ) -> anyhow::Result<Self> {
        let mut fleet = Fleet::prepare(FleetOptions {
            nodes,
            home_bytes: HOME_BYTES,
            journal_bytes: JOURNAL_BYTES,
            ..FleetOptions::new(binary.clone(), place.clone())
        })?;
        println!("starting {nodes} nodes on loopback");
        fleet.found().await?;
        Ok(Self {
            fleet,
            asked: 0,
            binary,
            place,
            ticks: rustix::param::clock_ticks_per_second() as f64,
        })
    }

    /// The API of one node, the first unless that is to go: all requests of a run go over one
    /// connection.
    pub(crate) fn client(&self) -> &Client {
        self.fleet.client(self.asked)
    }

    pub(crate) fn binary(&self) -> PathBuf {
        self.binary.clone()
    }

    /// Where the nodes' directories are.
    pub(crate) fn place(&self) -> PathBuf {
        self.place.clone()
    }

    pub(crate) fn nodes(&self) -> usize {
        self.fleet.apis().len()
    }

    /// Makes a volume and waits until it serves. Answers how long each of the two took.
    pub(crate) async fn create(&self, name: &str, bytes: u64) -> anyhow::Result<Created> {
        let wanted = new_volume(name, bytes);
        let begun = Instant::now();
        // The API's answer waits until the volume serves; whether it is there, others are asked.
        let looked = self.fleet.client(1).clone();
        let exists = async {
            loop {
                if looked.volume(name).await.is_ok() {
                    return begun.elapsed();
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let mut exists = std::pin::pin!(exists);
        let mut created = None;
        let making = self.client().create_volume(&wanted);
        let mut making = std::pin::pin!(making);
        let answer = loop {
            tokio::select! {
                answer = &mut making => break answer,
                took = &mut exists, if created.is_none() => created = Some(took),
            }
        };
        let volume = answer.with_context(|| format!("creating {name}"))?.volume;
        let created = created.unwrap_or_else(|| begun.elapsed());
        if volume.state != VolumeState::Open {
            self.wait_for(
                Duration::from_secs(30),
                "the new volume to open",
                async || {
                    let shown = self.client().volume(name).await?;
                    Ok(shown.state == VolumeState::Open)
                },
            )
            .await?;
        }
        let opened = begun.elapsed();
        Ok(Created { created, opened })
    }

    /// Makes a volume; it may still be opening when this returns, and may be there already.
    pub(crate) async fn make(&self, name: &str, bytes: u64) -> anyhow::Result<Duration> {
        let wanted = new_volume(name, bytes);
        let begun = Instant::now();
        match self.client().create_volume(&wanted).await {
            Ok(_) => Ok(begun.elapsed()),
            // The connection has its age limit: the change may have been made.
            Err(ClientError::Broken { .. }) if self.client().volume(name).await.is_ok() => {
                Ok(begun.elapsed())
            }
            Err(error) => Err(error).with_context(|| format!("creating {name}")),
        }
    }

    pub(crate) async fn delete(&self, name: &str) -> anyhow::Result<()> {
        match self.client().delete_volume(name).await {
            Ok(()) => Ok(()),
            Err(ClientError::Problem(problem)) if problem.kind == ProblemKind::Unknown => Ok(()),
            Err(error) => Err(error).with_context(|| format!("deleting {name}")),
        }
    }

    /// All volumes whose names begin so.
    pub(crate) async fn volumes(&self, prefix: &str) -> anyhow::Result<Vec<VolumeStatus>> {
        let mut which = WhichVolumes {
            prefix: Some(prefix.to_owned()),
            ..WhichVolumes::default()
        };
        let mut volumes = Vec::new();
        loop {
            let page = self.client().volume_page(&which).await?;
            volumes.extend(page.volumes);
            match page.next_cursor {
                None => return Ok(volumes),
                cursor => which.cursor = cursor,
            }
        }
    }

    /// Whether every volume is served by an owner that says so itself: what the cluster's state
    /// says of volumes may be older than the last failure.
    pub(crate) async fn all_serve(&self) -> anyhow::Result<bool> {
        let serves = |volume: &VolumeStatus| {
            let report = volume.owner_report.as_ref();
            volume.state == VolumeState::Open && report.is_some_and(|report| report.open)
        };
        Ok(self.volumes("").await?.iter().all(serves))
    }

    /// Whether every node is up and every volume serves with all its copies.
    pub(crate) async fn is_whole(&self) -> anyhow::Result<bool> {
        let nodes = self.client().nodes(Default::default()).await?;
        let which = WhichVolumes {
            impaired: true,
            limit: Some(1),
            ..WhichVolumes::default()
        };
        let up = nodes.iter().all(|node| node.state == NodeState::Up);
        Ok(up && self.client().volume_page(&which).await?.volumes.is_empty())
    }

    /// Asks until the answer is yes. A node that does not answer has not said yes.
    pub(crate) async fn wait_for(
        &self,
        limit: Duration,
        what: &str,
        mut is_so: impl AsyncFnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        loop {
            let said = is_so().await;
            if let Ok(true) = said {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() >= limit {
                let more = said
                    .err()
                    .map_or(String::new(), |error| format!(": {error:#}"));
                bail!("waited {} s for {what}{more}", limit.as_secs());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Begins anew to measure how long nodes' threads stand still.
    pub(crate) async fn forget_stalls(&self) -> anyhow::Result<()> {
        for number in 1..=self.nodes() as u64 {
            self.client().forget_stalls(number).await?;
        }
        Ok(())
    }

    /// The longest stall of any node since then.
    pub(crate) async fn longest_stall(&self) -> anyhow::Result<(u64, Stalls)> {
        let nodes = self.client().nodes(Default::default()).await?;
        let stalls = nodes.into_iter().map(|node| {
            let stalls = node.stalls;
            let stalls = stalls.with_context(|| format!("node {} has said nothing", node.id))?;
            Ok((node.id, stalls))
        });
        let stalls: Vec<(u64, Stalls)> = stalls.collect::<anyhow::Result<_>>()?;
        let longest = stalls
            .into_iter()
            .max_by_key(|(_, stalls)| stalls.longest_us);
        longest.context("there are no nodes")
    }

    /// What the nodes use; all have to run.
    pub(crate) fn usage(&self) -> anyhow::Result<Use> {
        let mut usage = Use {
            at: Instant::now(),
            processor: Duration::ZERO,
            resident_bytes: Vec::new(),
            written_bytes: Vec::new(),
        };
        for index in 0..self.nodes() {
            let pid = self.fleet.pid(index);
            let pid = pid.with_context(|| format!("node {} does not run", index + 1))?;
            let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
            let stat = read("stat")?;
            // The second field is the program's name, in brackets.
            let (_, fields) = stat.rsplit_once(')').context("an odd /proc/PID/stat")?;
            let fields: Vec<&str> = fields.split_whitespace().collect();
            let field = |number: usize| -> anyhow::Result<u64> {
                let text = fields.get(number - 3).context("a short /proc/PID/stat")?;
                Ok(text.parse()?)
            };
            let ticks = field(14)? + field(15)?;
            usage.processor += Duration::from_secs_f64(ticks as f64 / self.ticks);
            let pages = field(24)?;
            usage
                .resident_bytes
                .push(pages * rustix::param::page_size() as u64);
            let written = read("io").unwrap_or_default();
            let written = written
                .lines()
                .find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
            usage.written_bytes.push(written.unwrap_or(0));
        }
        Ok(usage)
    }

    /// How long a command of the CLI takes, as a process.
    pub(crate) async fn command(&self, words: &[&str]) -> anyhow::Result<Duration> {
        let mut command = Command::new(&self.binary);
        let api = format!("http://{}", self.fleet.apis()[0]);
        command.args(words).args(["--api", &api]).kill_on_drop(true);
        let begun = Instant::now();
        let output = timeout(COMMAND_LIMIT, command.output()).await??;
        let took = begun.elapsed();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("holdfast {}: {said}", words.join(" "));
        }
        Ok(took)
    }
}

/// How long it took until a new volume was there, and until it served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Created {
    pub(crate) created: Duration,
    pub(crate) opened: Duration,
}

/// A volume of three copies that every initiator may use.
fn new_volume(name: &str, bytes: u64) -> NewVolume {
    NewVolume {
        name: name.to_owned(),
        size_bytes: bytes,
        copies: 3,
        block_size: 512,
        authentication: Authentication::None,
        initiators: Vec::new(),
        redirect_to_owner: false,
    }
}
