//! A demo cluster of its own for measuring and for foreign initiators: `holdfast demo --serve`.
//!
//! Promise: when a [`ServedDemo`] is dropped, its processes have ended and its files are gone.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;
use wait_timeout::ChildExt as _;

use crate::process::{Ended, capture, stop_tree};
use crate::processes::{self, Signal};

/// Five nodes on two busy cores, each making its journal.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Handing volumes over and emptying the journals.
const END_LIMIT: Duration = Duration::from_secs(20);
const QUESTION_LIMIT: Duration = Duration::from_secs(20);
/// A node starts again, and its copies get what they missed.
const WHOLE_LIMIT: Duration = Duration::from_secs(60);
/// A node hands its volumes over within seconds.
const STOP_LIMIT: Duration = Duration::from_secs(30);
const POLL_PERIOD: Duration = Duration::from_millis(200);
/// The exit code of a question to a node that does not answer.
const UNREACHABLE: i32 = 3;

/// What the demo says when it is ready.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Ready {
    ready: bool,
    /// `host:port` of each node's portal.
    pub(crate) portals: Vec<String>,
    pub(crate) iqn: String,
    pub(crate) lun: u64,
    pub(crate) username: Option<String>,
    pub(crate) secret: Option<String>,
}

/// One node's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeProcess {
    pub(crate) pid: u32,
    portal_port: u16,
    api_port: u16,
}

/// A volume as its maker sees it.
#[derive(Clone, Debug)]
pub(crate) struct NewVolume {
    pub(crate) name: String,
    pub(crate) iqn: String,
    /// `host:port` of each node's portal.
    pub(crate) portals: Vec<String>,
    pub(crate) credentials: Credentials,
}

/// Names and secrets of CHAP; those of the target only if it has to prove itself.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Credentials {
    pub(crate) username: String,
    pub(crate) secret: String,
    pub(crate) target_username: Option<String>,
    pub(crate) target_secret: Option<String>,
}

/// How to start a killed node again.
#[derive(Debug)]
#[must_use]
pub(crate) struct Killed {
    words: Vec<String>,
}

/// See the module's header.
pub(crate) struct ServedDemo {
    binary: PathBuf,
    child: Child,
    /// Nodes that were killed and started again.
    started_again: Vec<Child>,
    pub(crate) ready: Ready,
    _directory: TempDir,
}

impl ServedDemo {
    /// Starts five nodes and waits until they serve.
    pub(crate) fn start(binary: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut child = Command::new(binary)
            .args(["demo", "--serve", "-o", "json", "--dir"])
            .arg(directory.path().join("cluster"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the demo")?;
        let output = child.stdout.take().context("the demo has no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // Reads on after the first line, so that the demo never meets a full or closed pipe.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        match lines.recv_timeout(READY_LIMIT) {
            Ok(line) => {
                let ready = serde_json::from_str(&line);
                let ready: Ready = ready.with_context(|| format!("the demo said {line:?}"))?;
                let binary = binary.to_owned();
                let demo = Self {
                    binary,
                    child,
                    started_again: Vec::new(),
                    ready,
                    _directory: directory,
                };
                if !demo.ready.ready || demo.ready.portals.is_empty() {
                    bail!("the demo is not ready: {line}");
                }
                Ok(demo)
            }
            Err(error) => {
                stop_tree(&mut child)?;
                bail!(
                    "the demo was not ready within {} s: {error}",
                    READY_LIMIT.as_secs()
                )
            }
        }
    }

    /// The process that started the nodes.
    pub(crate) fn supervisor(&self) -> u32 {
        self.child.id()
    }

    /// The processes of the nodes that live.
    pub(crate) fn nodes(&self) -> Vec<NodeProcess> {
        let family = processes::descendants(self.child.id()).into_iter();
        let family = family.chain(self.started_again.iter().map(Child::id));
        family
            .filter_map(|pid| node_process(pid, &processes::command_line(pid)?))
            .collect()
    }

    /// The process that orders the I/O of the demo's volume at the moment, and its portal.
    pub(crate) fn owner(&self) -> anyhow::Result<(NodeProcess, String)> {
        let name = self.ready.iqn.split_once(':');
        let (_, name) = name.context("the target's name")?;
        self.owner_of(name)
    }

    /// The process that orders a volume's I/O at the moment, and its portal.
    pub(crate) fn owner_of(&self, volume: &str) -> anyhow::Result<(NodeProcess, String)> {
        let volume = self.ask(&["volume", "show", volume])?;
        let owner = owner_of(&volume).with_context(|| format!("no owner in {volume}"))?;
        let records = self.ask(&["node", "list"])?;
        let portal = portal_of(&records, owner)
            .with_context(|| format!("no portal of node {owner} in {records}"))?;
        Ok((self.process_at(&portal)?, portal))
    }

    /// The living process behind a portal.
    pub(crate) fn process_at(&self, portal: &str) -> anyhow::Result<NodeProcess> {
        self.nodes()
            .into_iter()
            .find(|node| portal.ends_with(&format!(":{}", node.portal_port)))
            .with_context(|| format!("no process has the portal {portal}"))
    }

    /// Makes a volume with CHAP, or with mutual CHAP.
    pub(crate) fn create_volume(
        &self,
        name: &str,
        size: &str,
        mutual: bool,
    ) -> anyhow::Result<NewVolume> {
        self.create(name, size, if mutual { &["--mutual-chap"] } else { &[] })
    }

    /// Makes a volume with CHAP whose blocks are its physical blocks.
    pub(crate) fn create_large_block_volume(
        &self,
        name: &str,
        size: &str,
    ) -> anyhow::Result<NewVolume> {
        self.create(name, size, &["--block-size", "4096"])
    }

    fn create(&self, name: &str, size: &str, options: &[&str]) -> anyhow::Result<NewVolume> {
        let mut words = vec!["volume", "create", name, "--size", size];
        words.extend(options);
        let created = self.ask(&words)?;
        let wrong = || format!("an unexpected answer: {created}");
        Ok(NewVolume {
            name: name.to_owned(),
            iqn: String::deserialize(&created["volume"]["target"]).with_context(wrong)?,
            portals: Vec::deserialize(&created["volume"]["portals"]).with_context(wrong)?,
            credentials: Credentials::deserialize(&created["credentials"]).with_context(wrong)?,
        })
    }

    /// Kills a node's process, by SIGKILL.
    pub(crate) fn kill(&self, node: &NodeProcess) -> anyhow::Result<Killed> {
        let words = processes::command_line(node.pid).context("the node has ended by itself")?;
        processes::signal(node.pid, Signal::KILL)?;
        Ok(Killed { words })
    }

    /// Stops a node in good order, by SIGTERM, and waits until its process is gone.
    pub(crate) fn stop(&self, node: &NodeProcess) -> anyhow::Result<Killed> {
        let words = processes::command_line(node.pid).context("the node has ended by itself")?;
        processes::signal(node.pid, Signal::TERM)?;
        let deadline = Instant::now() + STOP_LIMIT;
        // A process that has ended and is not waited for yet has no command line any more.
        while processes::command_line(node.pid).is_some_and(|words| !words.is_empty()) {
            if Instant::now() >= deadline {
                bail!(
                    "node {} goes on {} s after SIGTERM",
                    node.pid,
                    STOP_LIMIT.as_secs()
                );
            }
            thread::sleep(POLL_PERIOD);
        }
        Ok(Killed { words })
    }

    /// Makes a volume larger, and answers its new size in bytes.
    pub(crate) fn resize(&self, name: &str, size: &str) -> anyhow::Result<u64> {
        let volume = self.ask(&["volume", "resize", name, "--size", size])?;
        if !volume["growing_to_bytes"].is_null() {
            bail!("the volume has not grown within its time: {volume}");
        }
        let wrong = || format!("an unexpected answer: {volume}");
        volume["size_bytes"].as_u64().with_context(wrong)
    }

    /// Has another node that holds the volume own it; it serves when this returns.
    pub(crate) fn move_elsewhere(&self, name: &str) -> anyhow::Result<()> {
        let volume = self.ask(&["volume", "show", name])?;
        let owner = owner_of(&volume);
        let holders = volume["holders"].as_array().into_iter().flatten();
        let mut others = holders.filter_map(|holder| holder["node"].as_u64());
        let other = others.find(|node| Some(*node) != owner);
        let other = other.with_context(|| format!("no other holder in {volume}"))?;
        let moved = self.ask(&["volume", "move", name, "--to", &other.to_string()])?;
        if owner_of(&moved) != Some(other) || moved["state"] != "open" {
            bail!("the volume has not moved to node {other}: {moved}");
        }
        Ok(())
    }

    /// Starts a killed node again, as it was started before.
    pub(crate) fn start_again(&mut self, killed: &Killed) -> anyhow::Result<()> {
        let data = option(&killed.words, "--data").context("a node without a directory")?;
        let log = Path::new(data).join("log");
        let log = File::options().append(true).create(true).open(log)?;
        let (program, arguments) = killed.words.split_first().context("a node's program")?;
        let child = Command::new(program)
            .args(arguments)
            // The node ends when this pipe does.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.started_again.push(child);
        Ok(())
    }

    /// Waits until all nodes are up and all copies of a volume are in sync.
    pub(crate) fn wait_until_whole(&self, volume: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + WHOLE_LIMIT;
        loop {
            let cluster = self.ask(&["cluster", "status"])?;
            let shown = self.ask(&["volume", "show", volume])?;
            if is_whole(&cluster, &shown) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "not whole within {} s: {cluster} {shown}",
                    WHOLE_LIMIT.as_secs()
                );
            }
            thread::sleep(POLL_PERIOD);
        }
    }

    /// Bytes that blocks take on the disks of all nodes together.
    pub(crate) fn home_used_bytes(&self) -> anyhow::Result<u64> {
        let nodes = self.ask(&["node", "list"])?;
        let nodes = nodes.as_array().context("no list of nodes")?;
        let used = nodes
            .iter()
            .map(|node| node["usage"]["home_used_bytes"].as_u64());
        used.sum::<Option<u64>>()
            .with_context(|| format!("a node does not tell what it uses: {nodes:?}"))
    }

    /// What the first node that can be reached answers.
    fn ask(&self, words: &[&str]) -> anyhow::Result<Value> {
        let mut refused = anyhow::anyhow!("no node process was found");
        for node in self.nodes() {
            let mut command = Command::new(&self.binary);
            command.args(words).args(["-o", "json", "--api"]);
            command.arg(format!("http://127.0.0.1:{}", node.api_port));
            let Ended { status, text } = capture(&mut command, QUESTION_LIMIT)?;
            if status.success() {
                return Ok(serde_json::from_str(&text)?);
            }
            refused = anyhow::anyhow!("{}: {status}\n{text}", words.join(" "));
            // Only a node that is still starting up is a reason to ask another.
            if status.code() != Some(UNREACHABLE) {
                break;
            }
        }
        Err(refused)
    }
}

impl Drop for ServedDemo {
    fn drop(&mut self) {
        for node in &mut self.started_again {
            // One that was killed once more has ended already.
            let _ = stop_tree(node);
        }
        // As Ctrl-C would; what does not end by itself is made to.
        let _ = processes::signal(self.child.id(), Signal::INT);
        let ended = self.child.wait_timeout(END_LIMIT);
        if !matches!(ended, Ok(Some(_))) {
            eprintln!(
                "the demo did not end within {} s: killing it",
                END_LIMIT.as_secs()
            );
            let _ = stop_tree(&mut self.child);
        }
    }
}

fn node_process(pid: u32, words: &[String]) -> Option<NodeProcess> {
    let starts_node = words
        .windows(2)
        .any(|pair| pair[0] == "node" && pair[1] == "start");
    starts_node.then_some(())?;
    Some(NodeProcess {
        pid,
        portal_port: option(words, "--portal-port")?.parse().ok()?,
        api_port: option(words, "--api-port")?.parse().ok()?,
    })
}

/// The value of an option, in either of its spellings.
fn option<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let apart = words.windows(2).find(|pair| pair[0] == name);
    let joined = |word: &'a String| word.strip_prefix(name)?.strip_prefix('=');
    apart
        .map(|pair| pair[1].as_str())
        .or_else(|| words.iter().find_map(joined))
}

fn owner_of(volume: &Value) -> Option<u64> {
    volume["owner"].as_u64()
}

fn portal_of(nodes: &Value, wanted: u64) -> Option<String> {
    let mut nodes = nodes.as_array()?.iter();
    let record = nodes.find(|node| node["id"].as_u64() == Some(wanted))?;
    record["portal_address"].as_str().map(ToOwned::to_owned)
}

fn is_whole(cluster: &Value, volume: &Value) -> bool {
    let redundancy = &volume["redundancy"];
    cluster["nodes_up"].as_u64() == cluster["nodes"].as_u64()
        && redundancy["full"].as_u64() == redundancy["slices"].as_u64()
        && volume["owner_report"]["open"] == true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_process_is_known_by_its_command_line() {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(Into::into).collect() };
        let line = "/x/holdfast node start --data /d --portal-port 3261 --api-port=8081";
        let expected = NodeProcess {
            pid: 7,
            portal_port: 3261,
            api_port: 8081,
        };
        assert_eq!(node_process(7, &words(line)), Some(expected));
        assert_eq!(node_process(7, &words("/x/holdfast demo --serve")), None);
    }

    #[test]
    fn a_volume_is_whole_with_all_nodes_all_copies_and_an_owner_that_serves() {
        let cluster = |up: u64| serde_json::json!({"nodes": 5, "nodes_up": up});
        let volume = |full: u64, open: bool| {
            serde_json::json!({
                "redundancy": {"slices": 2, "full": full},
                "owner_report": {"open": open},
            })
        };
        assert!(is_whole(&cluster(5), &volume(2, true)));
        assert!(!is_whole(&cluster(4), &volume(2, true)));
        assert!(!is_whole(&cluster(5), &volume(1, true)));
        assert!(!is_whole(&cluster(5), &volume(2, false)));
        let unreported = serde_json::json!({"redundancy": {"slices": 1, "full": 1}});
        assert!(!is_whole(&cluster(5), &unreported));
    }

    #[test]
    fn the_owner_leads_to_its_portal() {
        let volume = serde_json::json!({"name": "demo", "owner": 3});
        let nodes = serde_json::json!([
            {"id": 1, "portal_address": "127.0.0.1:3260"},
            {"id": 3, "portal_address": "127.0.0.1:3262"},
        ]);
        let owner = owner_of(&volume).unwrap();
        assert_eq!(portal_of(&nodes, owner).as_deref(), Some("127.0.0.1:3262"));
        assert_eq!(owner_of(&serde_json::json!({"owner": null})), None);
    }
}
