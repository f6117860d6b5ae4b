//! One node's process from its first line to its last.

use std::io::Read;
use std::path::Path;
use std::process;
use std::rc::Rc;

use holdfast_api::{ClusterStatus, Problem, Reply, RequestSender, router, serve};
use holdfast_node::Thresholds;
use holdfast_runtime::host::{HostDirectory, JoinToken};
use holdfast_runtime::{DiskError, Runtime};
use tokio::signal::unix::{SignalKind, signal};
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
    let token = match &args.join {
        Some(text) => Some(
            text.parse::<JoinToken>()
                .map_err(|error| Failure::Usage(format!("--join: {error}")))?,
        ),
        None => None,
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
        stop,
    };
    let mut stop = process.stop.clone();
    tokio::select! {
        biased;
        // Nothing is served yet, so there is nothing to hand over.
        _ = stop.wait_for(|stop| *stop) => Ok(()),
        founder = process.become_member(token) => {
            let founder = founder?;
            serving::run(process, founder).await
        }
    }
}

impl Process {
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
        let mut ignored = [0; 64];
        // Anything but bytes means that nobody holds the other end any more.
        while matches!(std::io::stdin().read(&mut ignored), Ok(1..)) {}
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

/// True after the first SIGTERM or SIGINT; the second ends the process at once.
fn watch_signals(runtime: &Runtime) -> Result<watch::Receiver<bool>, Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::of)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::of)?;
    let (sender, stop) = watch::channel(false);
    runtime.spawn("signals", async move {
        for count in 1u32.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if count > 1 {
                tracing::warn!("a second signal: ending at once");
                process::exit(1);
            }
            tracing::info!("stopping: the volumes are handed over first");
            sender.send_replace(true);
        }
    });
    Ok(stop)
}
