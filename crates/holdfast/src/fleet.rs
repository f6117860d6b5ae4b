//! A cluster of node processes on loopback, for the demo and for tests.
//!
//! What it promises: no node outlives the fleet. Dropping it kills every node; should this
//! process itself be killed, the nodes' standard input ends and they end with it.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use holdfast_api::{Client, ClientError, ClusterPhase, ClusterStatus, NewCluster, NewToken};
use rustix::process::{Pid, Signal, kill_process};
use thiserror::Error;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};

/// Ports are taken from here: below the range from which Linux takes the local ports of outgoing
/// connections, so that no connection to a node that is down can meet itself.
const PORTS: std::ops::Range<u16> = 10_240..32_000;
/// One request to a node's API.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);
/// A new node pre-writes its journal and config log.
const START_LIMIT: Duration = Duration::from_secs(60);
const POLL_PERIOD: Duration = Duration::from_millis(20);
/// Lines of a node's log in an error.
const LOG_LINES: usize = 8;

/// What to start.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// The `holdfast` executable.
    pub executable: PathBuf,
    /// Where the nodes' directories and logs go.
    pub directory: PathBuf,
    /// How many nodes.
    pub nodes: usize,
    /// The portal's port of the first node, the others after it; `None` takes free ones.
    pub portal_base: Option<u16>,
    /// Each node's journal.
    pub journal_bytes: u64,
    /// Each node's home.
    pub home_bytes: u64,
    /// Whether homes take their space only as they need it: many nodes fit on one disk.
    pub home_sparse: bool,
}

impl FleetOptions {
    /// Five nodes with sizes for a laptop.
    pub fn new(executable: PathBuf, directory: PathBuf) -> Self {
        Self {
            executable,
            directory,
            nodes: 5,
            portal_base: None,
            journal_bytes: 64 << 20,
            home_bytes: 4 << 30,
            home_sparse: true,
        }
    }
}

/// Why a fleet is not as wanted.
#[derive(Debug, Error)]
pub enum FleetError {
    /// A port is taken.
    #[error("port {port} is taken by another process: choose others with --portal-base")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// The ports do not fit below 65536.
    #[error("there are not {nodes} ports from {base} on")]
    PortsEnd {
        /// The first.
        base: u16,
        /// How many are wanted.
        nodes: usize,
    },
    /// The operating system refused something.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: String,
        /// Its words.
        error: io::Error,
    },
    /// A node's process ended although it should run.
    #[error("node {node} ended ({status}); its log ends with:\n{log}")]
    Ended {
        /// Counted from one.
        node: usize,
        /// How.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// Something did not come about in time.
    #[error("after {limit:?}: {what}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// A node refused.
    #[error(transparent)]
    Api(#[from] ClientError),
}

/// The ports of one node.
#[derive(Clone, Copy, Debug)]
pub struct NodePorts {
    /// For other nodes.
    pub link: u16,
    /// The REST API.
    pub api: u16,
    /// The iSCSI portal.
    pub portal: u16,
}

/// One node of the fleet.
struct Member {
    directory: PathBuf,
    log: PathBuf,
    ports: NodePorts,
    client: Client,
    process: Option<Child>,
    /// Kept apart from the process, whose `wait` would close it: a node ends when it ends.
    lifeline: Option<ChildStdin>,
}

/// A cluster of node processes. They are counted from zero here; the numbers that the cluster
/// gives them are one more.
pub struct Fleet {
    options: FleetOptions,
    members: Vec<Member>,
}

impl Fleet {
    /// Chooses ports and makes directories; starts nothing.
    pub fn prepare(options: FleetOptions) -> Result<Self, FleetError> {
        let ports = choose_ports(options.nodes, options.portal_base)?;
        let mut members = Vec::new();
        for (index, ports) in ports.into_iter().enumerate() {
            let directory = options.directory.join(format!("node-{}", index + 1));
            std::fs::create_dir_all(&directory).map_err(|error| system(&directory, error))?;
            let log = directory.join("log");
            let api = format!("http://{}", address(ports.api));
            members.push(Member {
                client: Client::new(&api, REQUEST_LIMIT)?,
                directory,
                log,
                ports,
                process: None,
                lifeline: None,
            });
        }
        Ok(Self { options, members })
    }

    /// Founds the cluster and lets every node join; returns when it is healthy.
    pub async fn found(&mut self) -> Result<(), FleetError> {
        self.start(0, None)?;
        self.wait_for_phase(0, "the first node", &[ClusterPhase::NoCluster])
            .await?;
        let wanted = NewCluster {
            name: "loopback".into(),
        };
        self.members[0].client.found(&wanted).await?;
        for index in 1..self.members.len() {
            let token = self.token(0).await?;
            self.start(index, Some(&token))?;
            // Numbers are given in the order of joining; everything after that goes on side by
            // side.
            let nodes = index as u64 + 1;
            self.wait_for(0, "join", START_LIMIT, |status| status.nodes == nodes)
                .await?;
        }
        self.wait_until_healthy(START_LIMIT).await
    }

    /// The node with this number.
    pub fn index_of(&self, number: u64) -> Option<usize> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        (index < self.members.len()).then_some(index)
    }

    /// A join token of the cluster, made by this node.
    pub async fn token(&self, index: usize) -> Result<String, FleetError> {
        let wanted = NewToken { expires_s: 600 };
        Ok(self.members[index].client.add_token(&wanted).await?.token)
    }

    /// Starts a node's process.
    pub fn start(&mut self, index: usize, token: Option<&str>) -> Result<(), FleetError> {
        self.start_with(index, token, &[])
    }

    /// Starts a node's process with more arguments.
    pub fn start_with(
        &mut self,
        index: usize,
        token: Option<&str>,
        more: &[&str],
    ) -> Result<(), FleetError> {
        let mut command = self.command(index);
        command.args(more);
        let member = &mut self.members[index];
        if let Some(token) = token {
            // Not an argument: those are shown in process lists.
            command.env("HOLDFAST_JOIN", token);
        }
        let log = File::options().append(true).create(true).open(&member.log);
        let log = log.map_err(|error| system(&member.log, error))?;
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| system(&self.options.executable, error))?;
        member.lifeline = process.stdin.take();
        member.process = Some(process);
        Ok(())
    }

    /// The command that runs a node, for those who want to change it.
    pub fn command(&self, index: usize) -> Command {
        let member = &self.members[index];
        let mut command = Command::new(&self.options.executable);
        command
            .args(["node", "start", "--listen", "127.0.0.1", "--end-with-stdin"])
            .arg("--data")
            .arg(&member.directory)
            .args(["--link-port", &member.ports.link.to_string()])
            .args(["--api-port", &member.ports.api.to_string()])
            .args(["--portal-port", &member.ports.portal.to_string()])
            .args(["--journal-size", &self.options.journal_bytes.to_string()])
            .args(["--home-size", &self.options.home_bytes.to_string()])
            .args(self.options.home_sparse.then_some("--home-sparse"))
            // A terminal's Ctrl-C is for the parent alone, which then ends the nodes.
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    /// Ends nodes at once, all at the same time, as a power cut would.
    pub async fn kill(&mut self, indices: &[usize]) -> Result<(), FleetError> {
        for index in indices {
            if let Some(process) = &mut self.members[*index].process {
                process.start_kill().map_err(|error| FleetError::System {
                    what: format!("killing node {}", index + 1),
                    error,
                })?;
            }
        }
        for index in indices {
            self.reap(*index).await?;
        }
        Ok(())
    }

    /// Tells a node to end in good order and waits for it.
    pub async fn stop(&mut self, index: usize, limit: Duration) -> Result<ExitStatus, FleetError> {
        let what = format!("stopping node {}", index + 1);
        self.signal(index, Signal::TERM, &what)?;
        let ended = timeout(limit, self.reap(index)).await;
        ended.unwrap_or(Err(FleetError::TimedOut { what, limit }))
    }

    /// Lets a node stand still, as a suspended machine does.
    pub fn pause(&self, index: usize) -> Result<(), FleetError> {
        self.signal(index, Signal::STOP, &format!("pausing node {}", index + 1))
    }

    /// Lets a node that stands still go on.
    pub fn resume(&self, index: usize) -> Result<(), FleetError> {
        let what = format!("resuming node {}", index + 1);
        self.signal(index, Signal::CONT, &what)
    }

    fn signal(&self, index: usize, signal: Signal, what: &str) -> Result<(), FleetError> {
        let failed = |error| FleetError::System {
            what: what.to_owned(),
            error,
        };
        let process = self.members[index].process.as_ref();
        let pid = process
            .and_then(Child::id)
            .and_then(|id| Pid::from_raw(id as i32));
        let pid = pid.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        kill_process(pid, signal).map_err(|error| failed(error.into()))
    }

    /// Waits for a node's process to end.
    pub async fn reap(&mut self, index: usize) -> Result<ExitStatus, FleetError> {
        let failed = |error| FleetError::System {
            what: format!("waiting for node {}", index + 1),
            error,
        };
        let member = &mut self.members[index];
        match &mut member.process {
            None => Err(failed(io::ErrorKind::NotFound.into())),
            Some(process) => {
                let status = process.wait().await.map_err(failed)?;
                member.process = None;
                member.lifeline = None;
                Ok(status)
            }
        }
    }

    /// Ends every node at once.
    pub async fn kill_all(&mut self) -> Result<(), FleetError> {
        let running: Vec<usize> = (0..self.members.len())
            .filter(|index| self.members[*index].process.is_some())
            .collect();
        self.kill(&running).await
    }

    /// Waits until every node is up and every volume has all its copies.
    pub async fn wait_until_healthy(&mut self, limit: Duration) -> Result<(), FleetError> {
        let nodes = self.members.len() as u64;
        self.wait_for(0, "a healthy cluster", limit, |status| {
            status.phase == ClusterPhase::Healthy && status.nodes == nodes
        })
        .await
        .map(drop)
    }

    /// Asks a node how the cluster is until the answer is as wanted.
    pub async fn wait_for(
        &mut self,
        index: usize,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&ClusterStatus) -> bool,
    ) -> Result<ClusterStatus, FleetError> {
        let deadline = Instant::now() + limit;
        loop {
            let seen = match self.members[index].client.cluster().await {
                Ok(status) if wanted(&status) => return Ok(status),
                Ok(status) => status.explanations.join("; "),
                Err(error) => error.to_string(),
            };
            self.check_alive()?;
            if Instant::now() >= deadline {
                let what = format!("no {what}: {seen}");
                return Err(FleetError::TimedOut { what, limit });
            }
            sleep(POLL_PERIOD).await;
        }
    }

    async fn wait_for_phase(
        &mut self,
        index: usize,
        what: &str,
        phases: &[ClusterPhase],
    ) -> Result<(), FleetError> {
        self.wait_for(index, what, START_LIMIT, |status| {
            phases.contains(&status.phase)
        })
        .await
        .map(drop)
    }

    /// An error if a node that was started and not ended has ended by itself.
    pub fn check_alive(&mut self) -> Result<(), FleetError> {
        for (index, member) in self.members.iter_mut().enumerate() {
            let Some(process) = &mut member.process else {
                continue;
            };
            let ended = process.try_wait().map_err(|error| FleetError::System {
                what: format!("looking at node {}", index + 1),
                error,
            })?;
            if let Some(status) = ended {
                return Err(FleetError::Ended {
                    node: index + 1,
                    status,
                    log: log_end(&member.log),
                });
            }
        }
        Ok(())
    }

    /// The client of a node's API.
    pub fn client(&self, index: usize) -> &Client {
        &self.members[index].client
    }

    /// The number of a node's process, while it has one.
    pub fn pid(&self, index: usize) -> Option<u32> {
        let process = self.members[index].process.as_ref();
        process.and_then(Child::id)
    }

    /// A node's ports.
    pub fn ports(&self, index: usize) -> NodePorts {
        self.members[index].ports
    }

    /// A node's data directory.
    pub fn directory(&self, index: usize) -> &Path {
        &self.members[index].directory
    }

    /// A node's log.
    pub fn log(&self, index: usize) -> &Path {
        &self.members[index].log
    }

    /// The REST APIs of all nodes.
    pub fn apis(&self) -> Vec<SocketAddr> {
        let members = self.members.iter();
        members.map(|member| address(member.ports.api)).collect()
    }

    /// The portals of all nodes.
    pub fn portals(&self) -> Vec<SocketAddr> {
        let members = self.members.iter();
        members.map(|member| address(member.ports.portal)).collect()
    }
}

fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn system(path: &Path, error: io::Error) -> FleetError {
    FleetError::System {
        what: path.display().to_string(),
        error,
    }
}

fn log_end(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(LOG_LINES);
    lines[start..].join("\n")
}

/// Free ports; all are held until all are chosen, so that none is given twice.
fn choose_ports(nodes: usize, portal_base: Option<u16>) -> Result<Vec<NodePorts>, FleetError> {
    let mut held = Vec::new();
    let mut hold = |port: u16| -> Option<u16> {
        let listener = TcpListener::bind(address(port)).ok()?;
        held.push(listener);
        Some(port)
    };
    let mut portals = Vec::new();
    if let Some(base) = portal_base {
        for offset in 0..nodes {
            let port = u16::try_from(usize::from(base) + offset)
                .map_err(|_| FleetError::PortsEnd { base, nodes })?;
            portals.push(hold(port).ok_or(FleetError::PortTaken { port })?);
        }
    }
    // Begins anywhere, so that two fleets that start together seldom try the same ports.
    let count = usize::from(PORTS.end - PORTS.start);
    let start = rand::random_range(0..count);
    let mut free = (0..count)
        .map(|offset| PORTS.start + ((start + offset) % count) as u16)
        .filter_map(hold);
    let mut next = || {
        let end = FleetError::PortsEnd {
            base: PORTS.start,
            nodes,
        };
        free.next().ok_or(end)
    };
    let mut chosen = Vec::new();
    for index in 0..nodes {
        chosen.push(NodePorts {
            link: next()?,
            api: next()?,
            portal: match portals.get(index) {
                Some(port) => *port,
                None => next()?,
            },
        });
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_distinct_and_outside_the_range_of_outgoing_connections() {
        let chosen = choose_ports(9, None).unwrap();
        let ports: Vec<u16> = chosen
            .iter()
            .flat_map(|ports| [ports.link, ports.api, ports.portal])
            .collect();
        let distinct: std::collections::BTreeSet<_> = ports.iter().collect();
        assert_eq!(distinct.len(), 27);
        assert!(ports.iter().all(|port| PORTS.contains(port)));
    }

    #[test]
    fn a_taken_portal_port_is_named() {
        let taken = TcpListener::bind(address(0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let refused = choose_ports(1, Some(port));
        assert!(matches!(refused, Err(FleetError::PortTaken { port: named }) if named == port));
        let refused = choose_ports(5, Some(65_533));
        assert!(matches!(
            refused,
            Err(FleetError::PortsEnd { .. } | FleetError::PortTaken { .. })
        ));
    }
}
