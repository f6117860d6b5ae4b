//! Node processes, and what operators do to them through the command line.
//!
//! Promise: no node outlives this process, whatever becomes of it.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{sleep, timeout};

use crate::network::Network;

const LINK_PORT: u16 = 7400;
const API_PORT: u16 = 7401;
const PORTAL_PORT: u16 = 3260;
const JOURNAL: &str = "32MiB";
const HOME: &str = "1GiB";
/// What a node's file system has, if it has one of its own.
const FILE_SYSTEM: &str = "448m";
const BALLAST: &str = "ballast";
/// Five nodes on two busy cores, each making its journal.
const START_LIMIT: Duration = Duration::from_secs(60);
/// A node that stops hands over its volumes and empties its journal first.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// One node's answer; another one is asked then.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);
const ORDER_LIMIT: Duration = Duration::from_secs(30);
const CHECK_LIMIT: Duration = Duration::from_secs(120);
const POLL_PERIOD: Duration = Duration::from_millis(200);
/// Exit code of the command line if no node could be reached.
const UNREACHABLE: i32 = 3;

/// One node's process.
struct Node {
    directory: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    lifeline: Option<ChildStdin>,
    is_paused: bool,
    has_file_system: bool,
}

/// A volume as its makers and hosts see it.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) target: String,
    pub(crate) username: String,
    pub(crate) secret: String,
}

/// Who does what for a volume at a moment; nodes counted from zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Office {
    pub(crate) owner: Option<usize>,
    pub(crate) holders: Vec<usize>,
}

/// The cluster at a moment.
#[derive(Clone, Debug)]
pub(crate) struct Offices {
    pub(crate) leader: Option<usize>,
    pub(crate) volumes: Vec<Office>,
}

/// See the module's header.
pub(crate) struct Cluster {
    binary: PathBuf,
    nodes: Vec<Node>,
    pub(crate) network: Network,
    pub(crate) volumes: Vec<Volume>,
}

impl Cluster {
    /// Nodes with a file system of their own each, if `small_file_systems`; nothing is started.
    pub(crate) async fn prepare(
        binary: &Path,
        directory: &Path,
        network: Network,
        nodes: usize,
        small_file_systems: bool,
    ) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        for number in 1..=nodes {
            let own = directory.join(format!("node-{number}"));
            std::fs::create_dir_all(&own)?;
            if small_file_systems {
                let mut mount = Command::new("mount");
                let size = format!("size={FILE_SYSTEM}");
                mount.args(["-t", "tmpfs", "-o", &size, "none"]).arg(&own);
                ensure!(
                    mount.status().await?.success(),
                    "mounting a small file system"
                );
            }
            all.push(Node {
                directory: own,
                log: directory.join(format!("node-{number}.log")),
                child: None,
                lifeline: None,
                is_paused: false,
                has_file_system: small_file_systems,
            });
        }
        Ok(Self {
            binary: binary.to_owned(),
            nodes: all,
            network,
            volumes: Vec::new(),
        })
    }

    /// Founds the cluster, lets every node join and makes volumes; all is whole when it returns.
    pub(crate) async fn found(&mut self, volumes: usize, size: &str) -> anyhow::Result<()> {
        self.start(0, None)?;
        self.until("the first node", START_LIMIT, |status| {
            status["phase"] == "no-cluster"
        })
        .await?;
        self.ask(&["cluster", "init", "--name", "chaos"]).await?;
        for node in 1..self.nodes.len() {
            let token = self.ask(&["cluster", "token"]).await?;
            let token = token["token"].as_str().context("no token")?.to_owned();
            self.start(node, Some(&token))?;
            // Numbers are given in the order of joining.
            self.until("a join", START_LIMIT, |status| {
                status["nodes"] == node as u64 + 1
            })
            .await?;
        }
        self.until_whole(START_LIMIT).await?;
        for index in 0..volumes {
            let name = format!("chaos-{index}");
            let created = self
                .ask(&["volume", "create", &name, "--size", size])
                .await?;
            let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
            let credentials = &created["credentials"];
            let volume = (
                text(&created["volume"]["target"]),
                text(&credentials["username"]),
                text(&credentials["secret"]),
            );
            let (Some(target), Some(username), Some(secret)) = volume else {
                bail!("an unexpected answer: {created}");
            };
            self.volumes.push(Volume {
                name,
                target,
                username,
                secret,
            });
        }
        self.until_whole(START_LIMIT).await
    }

    pub(crate) fn size(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn portal(&self, node: usize) -> SocketAddr {
        (self.network.address(node), PORTAL_PORT).into()
    }

    pub(crate) fn has_small_file_systems(&self) -> bool {
        self.nodes.iter().all(|node| node.has_file_system)
    }

    /// Starts a node's process; a node that runs is an error.
    pub(crate) fn start(&mut self, index: usize, token: Option<&str>) -> anyhow::Result<()> {
        let mut command = self.network.command(index, &self.binary);
        let node = &mut self.nodes[index];
        ensure!(node.child.is_none(), "node {} runs", index + 1);
        let log = File::options().append(true).create(true).open(&node.log)?;
        command
            .args([
                "node",
                "start",
                "--end-with-stdin",
                "--home-sparse",
                "--api-insecure",
            ])
            .arg("--data")
            .arg(&node.directory)
            .args(["--listen", &self.network.address(index).to_string()])
            .args(["--link-port", &LINK_PORT.to_string()])
            .args(["--portal-port", &PORTAL_PORT.to_string()])
            .args(["--api-port", &API_PORT.to_string()])
            .args(["--api-listen", &self.network.api_address(index).to_string()])
            .args(["--journal-size", JOURNAL, "--home-size", HOME])
            .env_remove("HOLDFAST_JOIN")
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(token) = token {
            command.env("HOLDFAST_JOIN", token);
        }
        let mut child = command.spawn().context("starting a node")?;
        node.lifeline = child.stdin.take();
        node.child = Some(child);
        Ok(())
    }

    pub(crate) fn is_running(&self, index: usize) -> bool {
        self.nodes[index].child.is_some()
    }

    /// SIGKILL, to all of them before any is waited for.
    pub(crate) async fn kill(&mut self, indices: &[usize]) -> anyhow::Result<()> {
        for index in indices {
            self.signal(*index, Signal::KILL)?;
        }
        for index in indices {
            self.reap(*index, STOP_LIMIT).await?;
        }
        Ok(())
    }

    /// SIGTERM, to all of them before any is waited for.
    pub(crate) async fn terminate(&mut self, indices: &[usize]) -> anyhow::Result<()> {
        for index in indices {
            self.signal(*index, Signal::TERM)?;
        }
        for index in indices {
            self.reap(*index, STOP_LIMIT).await?;
        }
        Ok(())
    }

    /// SIGSTOP.
    pub(crate) fn pause(&mut self, index: usize) -> anyhow::Result<()> {
        self.signal(index, Signal::STOP)?;
        self.nodes[index].is_paused = true;
        Ok(())
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self, index: usize) -> anyhow::Result<()> {
        self.nodes[index].is_paused = false;
        self.signal(index, Signal::CONT)
    }

    /// Waits for a node that is about to end by itself.
    pub(crate) async fn reap(&mut self, index: usize, limit: Duration) -> anyhow::Result<()> {
        let node = &mut self.nodes[index];
        let child = node.child.as_mut().context("a node that does not run")?;
        let ended = timeout(limit, child.wait()).await;
        ended.with_context(|| format!("node {} does not end", index + 1))??;
        node.child = None;
        node.lifeline = None;
        node.is_paused = false;
        Ok(())
    }

    /// Nodes that have ended although nobody told them to, with the end of their logs.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Vec<(usize, String)>> {
        let mut ended = Vec::new();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let Some(child) = &mut node.child else {
                continue;
            };
            if let Some(status) = child.try_wait()? {
                let text = std::fs::read_to_string(&node.log).unwrap_or_default();
                let last = text.lines().rev().take(5).collect::<Vec<_>>();
                let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
                ended.push((index, format!("{status}: {last}")));
                node.child = None;
                node.lifeline = None;
            }
        }
        Ok(ended)
    }

    /// Takes all the space that a node's file system has left.
    pub(crate) async fn fill_file_system(&self, index: usize) -> anyhow::Result<()> {
        let path = self.nodes[index].directory.join(BALLAST);
        // Clients go on meanwhile.
        tokio::task::spawn_blocking(move || {
            use std::io::Write as _;
            let mut ballast = File::create(path)?;
            let chunk = [1; 64 << 10];
            for length in [chunk.len(), 4096] {
                while ballast.write_all(&chunk[..length]).is_ok() {}
            }
            anyhow::Ok(())
        })
        .await?
    }

    /// Gives it back.
    pub(crate) fn empty_file_system(&self, index: usize) -> anyhow::Result<()> {
        std::fs::remove_file(self.nodes[index].directory.join(BALLAST)).map_err(Into::into)
    }

    /// Has another node own a volume; it serves there when this returns.
    pub(crate) async fn move_volume(&self, volume: usize, to: usize) -> anyhow::Result<()> {
        let to = (to + 1).to_string();
        let name = &self.volumes[volume].name;
        self.ask(&["volume", "move", name, "--to", &to])
            .await
            .map(drop)
    }

    /// Makes a volume larger.
    pub(crate) async fn grow_volume(&self, volume: usize) -> anyhow::Result<()> {
        let name = &self.volumes[volume].name;
        self.ask(&["volume", "resize", name, "--size", "+4MiB"])
            .await
            .map(drop)
    }

    pub(crate) async fn offices(&self) -> anyhow::Result<Offices> {
        let status = self.ask(&["cluster", "status"]).await?;
        let listed = self.ask(&["volume", "list"]).await?;
        let listed = listed.as_array().context("no list of volumes")?;
        let index = |node: &Value| Some(usize::try_from(node.as_u64()?).ok()? - 1);
        let office = |volume: &Volume| {
            let mut listed = listed.iter();
            let listed = listed.find(|listed| listed["name"] == volume.name.as_str());
            let listed = listed.with_context(|| format!("no volume {}", volume.name))?;
            let holders = listed["holders"].as_array().into_iter().flatten();
            Ok(Office {
                owner: index(&listed["owner"]),
                holders: holders
                    .filter_map(|holder| index(&holder["node"]))
                    .collect(),
            })
        };
        let volumes: anyhow::Result<Vec<Office>> = self.volumes.iter().map(office).collect();
        Ok(Offices {
            leader: index(&status["leader"]),
            volumes: volumes?,
        })
    }

    /// Waits until every node is up and every volume has all its copies.
    pub(crate) async fn until_whole(&mut self, limit: Duration) -> anyhow::Result<()> {
        let nodes = self.nodes.len() as u64;
        self.until("a whole cluster", limit, |status| {
            status["phase"] == "healthy" && status["nodes_up"] == nodes
        })
        .await
    }

    /// What each node that runs says the cluster is: `healthy`, `degraded` and so on.
    pub(crate) async fn phases(&self) -> Vec<(usize, String)> {
        let mut phases = Vec::new();
        for index in (0..self.nodes.len()).filter(|index| self.is_running(*index)) {
            let asked = self
                .ask_at(index, &["cluster", "status"], ANSWER_LIMIT)
                .await;
            let phase = asked
                .ok()
                .and_then(|status| Some(status["phase"].as_str()?.to_owned()));
            phases.push((index, phase.unwrap_or_else(|| "no answer".to_owned())));
        }
        phases
    }

    async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let seen = self.ask(&["cluster", "status"]).await;
            if seen.as_ref().is_ok_and(&wanted) {
                return Ok(());
            }
            if let Some((node, how)) = self.ended()?.pop() {
                bail!("node {} ended: {how}", node + 1);
            }
            if Instant::now() >= deadline {
                bail!("no {what} within {} s: {seen:?}", limit.as_secs());
            }
            sleep(POLL_PERIOD).await;
        }
    }

    /// What the first node answers that can.
    pub(crate) async fn ask(&self, words: &[&str]) -> anyhow::Result<Value> {
        let mut refused = anyhow::anyhow!("no node runs");
        for (index, node) in self.nodes.iter().enumerate() {
            if node.child.is_none() || node.is_paused {
                continue;
            }
            let is_question = matches!(words, [_, "status" | "list" | "show", ..]);
            let limit = if is_question {
                ANSWER_LIMIT
            } else {
                ORDER_LIMIT
            };
            match self.ask_at(index, words, limit).await {
                Ok(answer) => return Ok(answer),
                Err((error, is_final)) => {
                    refused = error;
                    if is_final {
                        break;
                    }
                }
            }
        }
        Err(refused)
    }

    /// The error says whether it would be the same at another node.
    async fn ask_at(
        &self,
        index: usize,
        words: &[&str],
        limit: Duration,
    ) -> Result<Value, (anyhow::Error, bool)> {
        let api = format!("http://{}:{API_PORT}", self.network.api_address(index));
        let mut command = Command::new(&self.binary);
        command.args(words).args(["-o", "json", "--api", &api]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let ended = timeout(limit, command.output()).await;
        let name = words.join(" ");
        let Ok(ended) = ended else {
            return Err((anyhow::anyhow!("{name}: no answer"), false));
        };
        let ended = ended.map_err(|error| (error.into(), true))?;
        if ended.status.success() {
            return serde_json::from_slice(&ended.stdout).map_err(|error| (error.into(), true));
        }
        let is_final = ended.status.code() != Some(UNREACHABLE);
        let said = String::from_utf8_lossy(&ended.stderr);
        Err((
            anyhow::anyhow!("{name}: {}: {said}", ended.status),
            is_final,
        ))
    }

    /// Stops every node and reads all that they have; answers what is wrong with it.
    pub(crate) async fn stop_and_check(&mut self) -> anyhow::Result<Vec<String>> {
        let running: Vec<usize> = (0..self.size())
            .filter(|node| self.is_running(*node))
            .collect();
        self.terminate(&running).await?;
        let mut wrong = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let mut command = Command::new(&self.binary);
            command.args(["store", "check"]).arg(&node.directory);
            command.stdin(Stdio::null()).kill_on_drop(true);
            let ended = timeout(CHECK_LIMIT, command.output())
                .await
                .context("store check")??;
            if !ended.status.success() {
                let said = String::from_utf8_lossy(&ended.stdout).into_owned();
                wrong.push(format!("node {}: {}: {said}", index + 1, ended.status));
            }
        }
        Ok(wrong)
    }

    fn signal(&self, index: usize, signal: Signal) -> anyhow::Result<()> {
        let child = self.nodes[index].child.as_ref();
        let pid = child
            .and_then(Child::id)
            .context("a node that does not run")?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("no process has this number")?;
        kill_process(pid, signal).with_context(|| format!("signalling node {}", index + 1))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.nodes.iter().filter(|node| node.has_file_system) {
            // What still runs is killed a moment later, and the mount goes with the last file.
            let mut unmount = std::process::Command::new("umount");
            let _ = unmount.arg("--lazy").arg(&node.directory).status();
        }
    }
}
