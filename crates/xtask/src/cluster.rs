//! A demo cluster of its own for measuring and for foreign initiators: `holdfast demo --serve`.
//!
//! Promise: when a [`ServedDemo`] is dropped, its processes have ended and its files are gone.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;
use wait_timeout::ChildExt as _;

use crate::process::{output_of, stop_tree};
use crate::processes::{self, Signal};

/// Five nodes on two busy cores, each making its journal.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Handing volumes over and emptying the journals.
const END_LIMIT: Duration = Duration::from_secs(20);
const QUESTION_LIMIT: Duration = Duration::from_secs(20);

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

/// See the module's header.
pub(crate) struct ServedDemo {
    binary: PathBuf,
    child: Child,
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
        family
            .filter_map(|pid| node_process(pid, &processes::command_line(pid)?))
            .collect()
    }

    /// The process that orders the volume's I/O at the moment, and its portal.
    pub(crate) fn owner(&self) -> anyhow::Result<(NodeProcess, String)> {
        let nodes = self.nodes();
        let any = nodes.first().context("no node process was found")?;
        let (_, name) = self
            .ready
            .iqn
            .split_once(':')
            .context("the target's name")?;
        let volume = self.ask(any, &["volume", "show", name])?;
        let owner = owner_of(&volume).with_context(|| format!("no owner in {volume}"))?;
        let records = self.ask(any, &["node", "list"])?;
        let portal = portal_of(&records, owner)
            .with_context(|| format!("no portal of node {owner} in {records}"))?;
        let process = nodes
            .iter()
            .find(|node| portal.ends_with(&format!(":{}", node.portal_port)))
            .with_context(|| format!("no process has the portal {portal}"))?;
        Ok((process.clone(), portal))
    }

    fn ask(&self, node: &NodeProcess, words: &[&str]) -> anyhow::Result<Value> {
        let mut command = Command::new(&self.binary);
        command.args(words).args(["-o", "json", "--api"]);
        command.arg(format!("http://127.0.0.1:{}", node.api_port));
        Ok(serde_json::from_str(&output_of(
            &mut command,
            QUESTION_LIMIT,
        )?)?)
    }
}

impl Drop for ServedDemo {
    fn drop(&mut self) {
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
