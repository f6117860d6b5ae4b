//! `holdfast demo`: a whole cluster on this machine, two nodes of which are killed under load.

mod place;
mod report;
mod traffic;

use std::time::Duration;

use holdfast_api::{Authentication, CreatedVolume, NewVolume, VolumeStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use crate::cli::{DemoArgs, DemoFormat};
use crate::failure::Failure;
use crate::fleet::{Fleet, FleetError, FleetOptions};
use crate::standard::{self, tell};
use place::Place;
use report::{Ready, Summary, Verification, as_ms, milliseconds};
use traffic::Traffic;

const VOLUME: &str = "demo";
/// Load while everything runs.
const STEADY: Duration = Duration::from_secs(3);
/// Load before and after the kill, in the phase that measures it.
const BEFORE_KILL: Duration = Duration::from_millis(500);
const AFTER_KILL: Duration = Duration::from_secs(4);
const RETURN_LIMIT: Duration = Duration::from_secs(60);
const POLL_PERIOD: Duration = Duration::from_millis(50);

/// Runs the demo; nothing of it is left afterwards.
pub(crate) fn run(args: &DemoArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::of)?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let mut terminate = signal(SignalKind::terminate()).map_err(Failure::of)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::of)?;
        // Declared before the fleet, so that it is removed after the nodes have ended.
        let place = Place::take(args.dir.as_deref()).map_err(Failure::of)?;
        let mut demo = Demo::prepare(args, &place)?;
        let told = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let outcome = tokio::select! {
            outcome = demo.play() => outcome,
            () = told => if demo.is_serving {
                // The operator ended it; a line that fails changes nothing.
                let _ = demo.say("\nstopping");
                Ok(())
            } else {
                Err(Failure::Failed("interrupted".into()))
            },
        };
        demo.fleet.kill_all().await.map_err(Failure::of)?;
        outcome
    })
}

struct Demo<'a> {
    args: &'a DemoArgs,
    fleet: Fleet,
    summary: Summary,
    begun: Instant,
    /// Everything is done but waiting for Ctrl-C.
    is_serving: bool,
}

impl<'a> Demo<'a> {
    fn prepare(args: &'a DemoArgs, place: &Place) -> Result<Self, Failure> {
        let executable = std::env::current_exe().map_err(Failure::of)?;
        let options = FleetOptions {
            nodes: usize::from(args.nodes),
            portal_base: args.portal_base,
            // What is written twice over fits; the sparse file takes space only as it is used.
            home_bytes: (args.volume_size * 2).max(4 << 30),
            ..FleetOptions::new(executable, place.path().to_owned())
        };
        Ok(Self {
            args,
            fleet: Fleet::prepare(options).map_err(Failure::of)?,
            summary: Summary::default(),
            begun: Instant::now(),
            is_serving: false,
        })
    }

    async fn play(&mut self) -> Result<(), Failure> {
        self.say(&format!("starting {} nodes on loopback", self.args.nodes))?;
        self.fleet.found().await.map_err(Failure::of)?;
        self.summary.nodes = u64::from(self.args.nodes);
        self.summary.started_ms = as_ms(self.begun.elapsed());
        self.say(&format!(
            "the cluster is healthy after {}",
            milliseconds(self.summary.started_ms)
        ))?;
        let created = self.create_volume().await?;
        let ready = Ready::new(&self.fleet.apis(), &self.fleet.portals(), &created);
        if self.args.output == DemoFormat::Json {
            print_line(&ready)?;
        }
        if !self.args.serve {
            self.disturb(&created).await?;
            self.summary.elapsed_ms = as_ms(self.begun.elapsed());
            match self.args.output {
                DemoFormat::Json => print_line(&self.summary)?,
                DemoFormat::Table => say(&format!("\n{}\n", self.summary.table()))?,
            }
            if !self.summary.ok {
                let text = "the cluster did not keep what it had acknowledged";
                return Err(Failure::Failed(text.into()));
            }
            if self.args.check {
                return Ok(());
            }
        }
        self.say(&format!("\n{}", ready.instructions()))?;
        self.say("The cluster stays up until Ctrl-C.")?;
        self.is_serving = true;
        std::future::pending().await
    }

    /// Says something to people.
    fn say(&self, text: &str) -> Result<(), Failure> {
        match self.args.output {
            DemoFormat::Table => say(text),
            DemoFormat::Json => Ok(()),
        }
    }

    async fn create_volume(&self) -> Result<CreatedVolume, Failure> {
        let wanted = NewVolume {
            name: VOLUME.into(),
            size_bytes: self.args.volume_size,
            copies: u32::from(self.args.nodes.min(3)),
            block_size: 512,
            authentication: if self.args.no_chap {
                Authentication::None
            } else {
                Authentication::Chap
            },
            initiators: Vec::new(),
            redirect_to_owner: false,
        };
        Ok(self.fleet.client(0).create_volume(&wanted).await?)
    }

    /// Load, kill, verification, return, verification.
    async fn disturb(&mut self, created: &CreatedVolume) -> Result<(), Failure> {
        let quiet = self.args.output == DemoFormat::Json;
        let portals = self.fleet.portals();
        let mut traffic = Traffic::open(portals, created, quiet)
            .await
            .map_err(Failure::of)?;
        let (steady, ()) = traffic
            .during("all nodes up", sleep(STEADY))
            .await
            .map_err(Failure::of)?;
        self.summary.operations_per_second = steady.operations_per_second();
        self.summary.gap_before_ms = as_ms(steady.gap.longest);
        self.count(&steady);
        self.say(&format!(
            "{:.0} I/O a second with all nodes up",
            steady.operations_per_second()
        ))?;
        let victims = self.victims(0).await?;
        if !victims.is_empty() {
            self.kill(&mut traffic, &victims).await?;
            self.verify(&traffic, "after the kill").await?;
            self.bring_back(&mut traffic, &victims).await?;
        }
        self.verify(&traffic, "at the end").await?;
        self.summary.acknowledged_bytes = traffic.acknowledged_bytes();
        let clean = self
            .summary
            .verifications
            .iter()
            .all(Verification::is_clean);
        self.summary.ok = clean && self.summary.errors == 0;
        traffic.close().await;
        Ok(())
    }

    /// Which nodes to kill: the volume's owner and another holder of a copy, as many as the
    /// cluster promises to survive.
    async fn victims(&mut self, asked: usize) -> Result<Vec<usize>, Failure> {
        let volume = self.volume(asked).await?;
        let owner = volume.owner.unwrap_or(1);
        self.summary.owner_before = owner;
        let nodes = u64::from(self.args.nodes);
        // A majority of the voters has to stay, and one copy.
        let voters = nodes.min(5);
        let survivable = ((voters - 1) / 2).min(u64::from(volume.copies) - 1).min(2);
        let others = volume
            .holders
            .iter()
            .map(|holder| holder.node)
            .filter(|node| *node != owner);
        let victims = std::iter::once(owner).chain(others);
        Ok(victims
            .take(survivable as usize)
            .filter_map(|node| self.fleet.index_of(node))
            .collect())
    }

    async fn kill(&mut self, traffic: &mut Traffic, victims: &[usize]) -> Result<(), Failure> {
        self.summary.killed = victims.iter().map(|index| *index as u64 + 1).collect();
        self.say(&format!(
            "killing nodes {:?} under load; the first owns the volume",
            self.summary.killed
        ))?;
        let fleet = &mut self.fleet;
        let killing = async {
            sleep(BEFORE_KILL).await;
            fleet.kill(victims).await?;
            sleep(AFTER_KILL).await;
            Ok::<(), FleetError>(())
        };
        let (statistics, killed) = traffic
            .during("nodes killed", killing)
            .await
            .map_err(Failure::of)?;
        killed.map_err(Failure::of)?;
        self.count(&statistics);
        self.summary.gap_kill_ms = as_ms(statistics.gap.longest);
        let asked = self.survivor(victims);
        self.summary.owner_after = self.volume(asked).await?.owner;
        self.say(&format!(
            "I/O stood still for {}, then went on",
            milliseconds(self.summary.gap_kill_ms)
        ))?;
        Ok(())
    }

    async fn bring_back(
        &mut self,
        traffic: &mut Traffic,
        victims: &[usize],
    ) -> Result<(), Failure> {
        self.say(&format!("starting nodes {:?} again", self.summary.killed))?;
        let asked = self.survivor(victims);
        let begun = Instant::now();
        let fleet = &mut self.fleet;
        let coming_back = async {
            for index in victims {
                fleet.start(*index, None).map_err(Failure::of)?;
            }
            wait_until_whole(fleet, asked).await
        };
        let (statistics, volume) = traffic
            .during("they come back", coming_back)
            .await
            .map_err(Failure::of)?;
        let volume = volume?;
        self.summary.resync_ms = as_ms(begun.elapsed());
        self.count(&statistics);
        self.summary.gap_return_ms = as_ms(statistics.gap.longest);
        let owner = volume.owner_report;
        self.summary.resync_bytes = owner.map_or(0, |owner| owner.resynced_bytes);
        self.say(&format!(
            "all copies are in sync after {}; {} were copied",
            milliseconds(self.summary.resync_ms),
            crate::quantity::show_size(self.summary.resync_bytes)
        ))?;
        Ok(())
    }

    async fn verify(&mut self, traffic: &Traffic, when: &'static str) -> Result<(), Failure> {
        let report = traffic.verify().await.map_err(Failure::of)?;
        let verification = Verification::new(when, &report);
        self.say(&format!("{when}: {}", verification.sentence()))?;
        for (block, verdict) in &report.findings.examples {
            tell(&format!("block {block}: {verdict:?}"));
        }
        if let Some(error) = &report.last_error {
            tell(&format!("last error: {error}"));
        }
        self.summary.verifications.push(verification);
        Ok(())
    }

    fn count(&mut self, statistics: &holdfast_initiator::Statistics) {
        self.summary.reads += statistics.reads;
        self.summary.writes += statistics.writes;
        let findings = &statistics.findings;
        self.summary.errors +=
            statistics.errors + findings.lost + findings.stale + findings.corrupt;
        if let Some(error) = &statistics.last_error {
            tell(&format!("an I/O failed: {error}"));
        }
    }

    fn survivor(&self, victims: &[usize]) -> usize {
        (0..usize::from(self.args.nodes))
            .find(|index| !victims.contains(index))
            .unwrap_or(0)
    }

    async fn volume(&self, asked: usize) -> Result<VolumeStatus, Failure> {
        Ok(self.fleet.client(asked).volume(VOLUME).await?)
    }
}

/// Waits until the volume has all its copies and all nodes are up.
async fn wait_until_whole(fleet: &mut Fleet, asked: usize) -> Result<VolumeStatus, Failure> {
    let deadline = Instant::now() + RETURN_LIMIT;
    loop {
        let volume = fleet.client(asked).volume(VOLUME).await?;
        let redundancy = volume.redundancy;
        if redundancy.full == redundancy.slices && volume.owner_report.is_some() {
            return Ok(volume);
        }
        fleet.check_alive().map_err(Failure::of)?;
        if Instant::now() >= deadline {
            return Err(Failure::Failed(format!(
                "the copies are not in sync after {RETURN_LIMIT:?}: {}",
                volume.explanation
            )));
        }
        sleep(POLL_PERIOD).await;
    }
}

fn print_line(value: &impl serde::Serialize) -> Result<(), Failure> {
    say(&serde_json::to_string(value).map_err(Failure::of)?)
}

/// A line of the demo. Where nobody listens any more it ends, and removes what it has made.
fn say(text: &str) -> Result<(), Failure> {
    let written = standard::write_all(standard::output(), format!("{text}\n").as_bytes());
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::Unheard,
        _ => Failure::Failed(format!("the output cannot be written: {error}")),
    })
}
