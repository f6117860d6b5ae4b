//! One node's process from its first line to its last.

use std::fs::File;
use std::path::Path;
use std::process;
use std::rc::Rc;
use std::time::Duration;

use holdfast_api::{ClusterStatus, Problem, Reply, RequestSender, router, serve};
use holdfast_node::Thresholds;
use holdfast_runtime::host::{HostDirectory, JoinToken, ignores, raise_descriptor_limit};
use holdfast_runtime::{DiskError, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::desk::Desk;
use super::identity::IdentityFile;
use super::listen::Ports;
use super::membership;
use super::places::{self, Area};
use super::serving;
use super::sizes;
use crate::cli::StartArgs;
use crate::failure::Failure;
use crate::{log, standard};

/// Somebody waits for the cluster to be founded.
pub(super) type Founder = Option<Reply<ClusterStatus>>;

/// Everything that a serving node was made from.
pub(super) struct Process {
    pub(super) runtime: Runtime,
    pub(super) directory: Rc<HostDirectory>,
    pub(super) identity: IdentityFile,
    pub(super) ports: PortNumbers,
    pub(super) desk: Desk,
    pub(super) thresholds: Thresholds,
    /// How many files and connections the process may have open.
    pub(super) descriptors: u64,
    /// Addresses at which other nodes may be.
    pub(super) peers: Vec<String>,
    pub(super) stop: watch::Receiver<bool>,
}

/// What is left of [`Ports`] once the API listens.
pub(super) struct PortNumbers {
    pub(super) link: std::net::SocketAddr,
    pub(super) portal: std::net::SocketAddr,
    pub(super) api_address: String,
}

/// Runs the node until it is told to end, or has to.
pub(super) async fn run(runtime: Runtime, args: StartArgs) -> Result<(), Failure> {
    // A variable that is set to nothing is one that is not set.
    let token = match args.join.as_deref().map(str::trim) {
        None | Some("") => None,
        Some(text) => Some(
            text.parse::<JoinToken>()
                .map_err(|error| Failure::Usage(format!("--join: {error}")))?,
        ),
    };
    if args.space_low >= args.space_critical {
        return Err(Failure::Usage(format!(
            "--space-low {} has to be below --space-critical {}",
            args.space_low, args.space_critical
        )));
    }
    let stop = watch_signals(&runtime)?;
    let directory = open_directory(&args.data)?;
    let ports = Ports::take(&args).await?;
    let known = IdentityFile::read(directory.path()).map_err(Failure::of)?;
    let mut directory = directory;
    let mut chosen = [None, None];
    for (area, place) in Area::ALL.into_iter().zip(&mut chosen) {
        *place = places::chosen(area, directory.path(), known.as_ref(), &args)?;
    }
    if chosen[0].is_some() && chosen[0] == chosen[1] {
        let both = "--journal and --home name the same place: each needs its own";
        return Err(Failure::Usage(both.to_owned()));
    }
    for (area, place) in Area::ALL.into_iter().zip(&chosen) {
        directory = places::claimed(area, directory, place.as_deref())?;
    }
    let directory = Rc::new(directory);
    let identity = match known {
        Some(mut known) => {
            sizes::apply(directory.path(), &mut known, &args)?;
            known
        }
        None => {
            let layout = sizes::new_layout(directory.path(), chosen, &args)?;
            IdentityFile::create(directory.path(), &runtime, layout).map_err(Failure::of)?
        }
    };
    for area in Area::ALL {
        places::verify(area, &identity)?;
    }

    let (sender, requests) = RequestSender::channel();
    tokio::spawn(serve(ports.api, router(sender, ports.access)));
    let mut process = Process {
        runtime,
        directory,
        identity,
        ports: PortNumbers {
            link: ports.link,
            portal: ports.portal,
            api_address: ports.api_address,
        },
        desk: Desk::new(requests),
        thresholds: Thresholds {
            low_percent: args.space_low,
            critical_percent: args.space_critical,
        },
        descriptors: raise_descriptor_limit(),
        peers: args.peer.clone(),
        stop,
    };
    let mut stop = process.stop.clone();
    tokio::select! {
        biased;
        // Nothing is served yet, so there is nothing to hand over.
        _ = stop.wait_for(|stop| *stop) => Ok(()),
        founder = async {
            process.wait_for_the_clock().await;
            process.become_member(token).await
        } => {
            let founder = founder?;
            serving::run(process, founder).await
        }
    }
}

/// This software is younger: a clock that says an earlier time has not been set.
const EARLIEST_UNIX_MS: u64 = 1_577_836_800_000;
const CLOCK_PERIOD: Duration = Duration::from_secs(1);
/// How often a node that waits for its clock says so.
const CLOCK_REMINDERS: Duration = Duration::from_secs(60);

impl Process {
    /// Waits until the machine's clock has been set. Nothing between nodes goes by it; but secrets
    /// whose time is over would be good again, and new tokens would be void already.
    async fn wait_for_the_clock(&mut self) {
        let runtime = self.runtime.clone();
        if runtime.unix_time_ms() >= EARLIEST_UNIX_MS {
            return;
        }
        let waiting = async {
            let mut said = None;
            while runtime.unix_time_ms() < EARLIEST_UNIX_MS {
                let now = runtime.now();
                if said.is_none_or(|at| now.saturating_since(at) >= CLOCK_REMINDERS) {
                    said = Some(now);
                    let time = log::time();
                    tracing::warn!(
                        "this machine's clock is wrong: it says {time}. The node waits until it \
                         is set, by NTP or with `date`"
                    );
                }
                runtime.sleep(CLOCK_PERIOD).await;
            }
            tracing::info!("the clock is set");
        };
        let what = "this machine's clock is wrong, and the node waits until it is set, by NTP or \
                    with `date`";
        self.desk.starting(what, waiting).await;
    }

    /// Founds or joins a cluster unless the node belongs to one.
    async fn become_member(&mut self, token: Option<JoinToken>) -> Result<Founder, Failure> {
        if let Some(credentials) = self.identity.credentials().map_err(Failure::of)? {
            if let Some(token) = token
                && token.authority != credentials.authority_fingerprint()
            {
                return Err(Failure::Failed(format!(
                    "this directory belongs to node {} of cluster {}, and the token is of another \
                     cluster. Start it without --join, or join with an empty directory",
                    credentials.node(),
                    credentials.cluster()
                )));
            }
            return Ok(None);
        }
        let (membership, founder) = match token {
            Some(token) => {
                let (uuid, link) = (self.identity.identity.uuid, self.ports.link.to_string());
                let joining = membership::join(&token, uuid, link);
                let what = format!("joining through {}", token.address);
                (self.desk.starting(&what, joining).await?, None)
            }
            None => {
                tracing::info!(
                    api = self.ports.api_address,
                    "no cluster yet: waiting for `holdfast cluster init`"
                );
                let (wanted, reply) = self.desk.until_founded().await;
                let membership =
                    membership::found(&self.runtime, &wanted.name).map_err(Failure::of)?;
                (membership, Some(reply))
            }
        };
        tracing::info!(cluster = %membership.cluster, node = %membership.node, "member");
        self.identity
            .update(|identity| identity.membership = Some(membership))
            .map_err(Failure::of)?;
        Ok(founder)
    }
}

/// Tells whoever waits for the founding that it failed.
pub(super) fn refuse(founder: Founder, failure: &Failure) {
    if let Some(reply) = founder {
        let hint = "the node's log says more";
        let _ = reply.send(Err(Problem::new(
            holdfast_api::ProblemKind::Internal,
            failure.to_string(),
            hint,
        )));
    }
}

/// Ends the process as soon as standard input ends, whatever it is doing: its parent is gone.
pub(super) fn end_with_standard_input() {
    std::thread::spawn(|| {
        standard::wait_for_end_of_input();
        process::exit(1);
    });
}

fn open_directory(path: &Path) -> Result<HostDirectory, Failure> {
    let name = path.display();
    HostDirectory::open(path).map_err(|error| {
        Failure::Failed(match error {
            DiskError::InUse { .. } => format!(
                "the data directory {name} is in use by another process: is the node running \
                 already?"
            ),
            DiskError::Io { .. } | DiskError::Full { .. } => {
                format!("the data directory {name}: {error}")
            }
        })
    })
}

/// True after the first signal that ends a node; the second ends the process at once.
///
/// | signal | |
/// |---|---|
/// | SIGTERM, SIGINT | ends the node |
/// | SIGHUP, the node was started at a terminal | the terminal is gone: the same |
/// | SIGHUP, it was not | nothing: other daemons read their configuration again |
/// | SIGHUP, ignored from the start on (`nohup`) | nothing |
fn watch_signals(runtime: &Runtime) -> Result<watch::Receiver<bool>, Failure> {
    let watched = |kind: SignalKind| signal(kind).map_err(Failure::of);
    let mut terminate = watched(SignalKind::terminate())?;
    let mut interrupt = watched(SignalKind::interrupt())?;
    let mut hangup = match ignores(SignalKind::hangup().as_raw_value()) {
        true => None,
        false => Some(watched(SignalKind::hangup())?),
    };
    let at_a_terminal = File::open("/dev/tty").is_ok();
    let (sender, stop) = watch::channel(false);
    runtime.spawn("signals", async move {
        let mut told = false;
        loop {
            let ends = tokio::select! {
                _ = terminate.recv() => true,
                _ = interrupt.recv() => true,
                () = next(&mut hangup) => at_a_terminal,
            };
            if !ends {
                tracing::info!("SIGHUP: there is nothing to read again. SIGTERM ends the node");
                continue;
            }
            if told {
                tracing::warn!("a second signal: ending at once");
                log::flush();
                process::exit(1);
            }
            told = true;
            tracing::info!("stopping: the volumes are handed over first");
            sender.send_replace(true);
        }
    });
    Ok(stop)
}

async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}
