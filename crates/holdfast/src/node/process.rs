//! One node's process from its first line to its last.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process;
use std::rc::Rc;

use holdfast_api::{ClusterStatus, Problem, Reply, RequestSender, router, serve};
use holdfast_node::Thresholds;
use holdfast_runtime::host::{HostDirectory, JoinToken};
use holdfast_runtime::{DiskError, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::desk::Desk;
use super::identity::{IdentityFile, NewLayout};
use super::journal;
use super::listen::Ports;
use super::membership;
use super::serving;
use crate::cli::StartArgs;
use crate::failure::Failure;

const JOURNAL_BYTES: u64 = 256 << 20;
/// A record has to be small beside the ring (a sixteenth), and one of 1 MiB has to be possible.
const JOURNAL_BYTES_MIN: u64 = 32 << 20;
/// Of a larger device no more is taken: a restart reads what is in the journal, and holds it in
/// memory.
const DEVICE_BYTES_MAX: u64 = 4 << 30;
const HOME_BYTES: u64 = 64 << 30;

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
    let place = journal_place(directory.path(), known.as_ref(), &args)?;
    // Claimed before anything of it is overwritten.
    let directory = Rc::new(match &place {
        Some(path) => directory
            .with_area_at(journal::JOURNAL_AREA, path)
            .map_err(|error| in_use("the journal", &path.display().to_string(), &error))?,
        None => directory,
    });
    let mut identity = match known {
        Some(known) => known,
        None => new_identity(directory.path(), &runtime, place, &args)?,
    };
    apply_sizes(&mut identity, &args)?;
    journal::verify(directory.path(), &identity)?;

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
    HostDirectory::open(path)
        .map_err(|error| in_use("the data directory", &path.display().to_string(), &error))
}

fn in_use(what: &str, name: &str, error: &DiskError) -> Failure {
    Failure::Failed(match error {
        DiskError::InUse { .. } => {
            format!("{what} {name} is in use by another process: is the node running already?")
        }
        DiskError::Io { .. } | DiskError::Full { .. } => format!("{what} {name}: {error}"),
    })
}

/// Where the journal is or shall be, if not in the directory.
fn journal_place(
    directory: &Path,
    known: Option<&IdentityFile>,
    args: &StartArgs,
) -> Result<Option<PathBuf>, Failure> {
    let wanted = match &args.journal {
        Some(path) => journal::place(directory, path)?,
        None => None,
    };
    let Some(file) = known else {
        return Ok(wanted);
    };
    let known = &file.identity.journal;
    if args.journal.is_some() && *known != wanted {
        let inside = directory.join(journal::JOURNAL_AREA);
        let known = known.as_ref().unwrap_or(&inside).display();
        let wanted = wanted.as_ref().unwrap_or(&inside).display();
        return Err(Failure::Failed(format!(
            "the journal of this node is {known}, not {wanted}. Leave --journal out, or move the \
             journal first: holdfast store move-journal {} {wanted}",
            directory.display()
        )));
    }
    Ok(known.clone())
}

/// The identity of a directory at its first start.
fn new_identity(
    directory: &Path,
    runtime: &Runtime,
    wanted: Option<PathBuf>,
    args: &StartArgs,
) -> Result<IdentityFile, Failure> {
    let mut journal_bytes = args.journal_size;
    if let Some(path) = &wanted {
        journal::make_room(path, None, args.journal_force, "--journal-force")?;
        let size = journal::device_bytes(path).map_err(Failure::of)?;
        if let (Some(size), Some(wanted)) = (size, journal_bytes)
            && size < wanted
        {
            return Err(Failure::Failed(format!(
                "{} has {size} bytes, and --journal-size asks for {wanted}",
                path.display()
            )));
        }
        // A device is taken as a whole unless something else is wanted.
        journal_bytes = journal_bytes.or(size.map(|size| size.min(DEVICE_BYTES_MAX)));
    }
    let journal_bytes = journal_bytes.unwrap_or(JOURNAL_BYTES);
    if journal_bytes < JOURNAL_BYTES_MIN {
        return Err(Failure::Usage(format!(
            "a journal of {journal_bytes} bytes is too small: the largest write of an initiator \
             would not fit. Give it {JOURNAL_BYTES_MIN} bytes at least"
        )));
    }
    let layout = NewLayout {
        journal_bytes,
        journal: wanted,
        home_bytes: args.home_size.unwrap_or(HOME_BYTES),
    };
    IdentityFile::create(directory, runtime, layout).map_err(Failure::of)
}

/// The sizes on the command line against those that the directory was made with.
fn apply_sizes(identity: &mut IdentityFile, args: &StartArgs) -> Result<(), Failure> {
    let known = (
        identity.identity.journal_bytes,
        identity.identity.home_bytes,
    );
    let journal = args.journal_size.unwrap_or(known.0);
    let home = args.home_size.unwrap_or(known.1);
    if journal != known.0 {
        return Err(Failure::Failed(format!(
            "the journal was made with {} bytes and cannot become {journal}. Leave --journal-size \
             out, or let the node join again with an empty directory",
            known.0
        )));
    }
    if home < known.1 {
        return Err(Failure::Failed(format!(
            "the home has {} bytes and cannot shrink to {home}",
            known.1
        )));
    }
    if home > known.1 {
        identity
            .update(|identity| identity.home_bytes = home)
            .map_err(Failure::of)?;
    }
    Ok(())
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
