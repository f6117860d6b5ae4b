//! What the demo tells, for people and for programs.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use holdfast_api::{ChapCredentials, CreatedVolume};
use holdfast_initiator::VerifyReport;
use serde::Serialize;

use crate::output::{Rows, table};
use crate::quantity::show_size;

/// How to reach the volume: the first line of `-o json`.
#[derive(Clone, Serialize)]
pub(super) struct Ready {
    ready: bool,
    /// The REST API of each node.
    apis: Vec<String>,
    portals: Vec<String>,
    iqn: String,
    lun: u16,
    username: Option<String>,
    secret: Option<String>,
}

impl Ready {
    pub(super) fn new(
        apis: &[SocketAddr],
        portals: &[SocketAddr],
        created: &CreatedVolume,
    ) -> Self {
        let (username, secret) = match &created.credentials {
            Some(ChapCredentials {
                username, secret, ..
            }) => (Some(username.clone()), Some(secret.clone())),
            None => (None, None),
        };
        Self {
            ready: true,
            apis: apis.iter().map(|api| format!("http://{api}")).collect(),
            portals: portals.iter().map(SocketAddr::to_string).collect(),
            iqn: created.volume.target.clone(),
            lun: created.volume.lun,
            username,
            secret,
        }
    }

    /// How to use the volume with other initiators.
    pub(super) fn instructions(&self) -> String {
        let Self {
            apis,
            portals,
            iqn,
            lun,
            ..
        } = self;
        let first = portals.first().map_or("", String::as_str);
        let mut text = format!(
            "Target   {iqn}, LUN {lun}\nPortals  {}\n",
            portals.join(" ")
        );
        let mut user = String::new();
        if let (Some(username), Some(secret)) = (&self.username, &self.secret) {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "CHAP     user {username}, secret {secret}");
            user = format!("{username}%{secret}@");
        }
        let _ = write!(
            text,
            "APIs     {}\n\n\
             This command, another terminal:\n  \
               export HOLDFAST_API={}\n  \
               holdfast cluster status\n",
            apis.join(" "),
            apis.first().map_or("", String::as_str)
        );
        let _ = write!(
            text,
            "Linux (open-iscsi, as root):\n  \
               iscsiadm -m discovery -t sendtargets -p {first}\n"
        );
        if let (Some(username), Some(secret)) = (&self.username, &self.secret) {
            for (name, value) in [
                ("authmethod", "CHAP"),
                ("username", username),
                ("password", secret),
            ] {
                let _ = writeln!(
                    text,
                    "  iscsiadm -m node -T {iqn} -o update -n node.session.auth.{name} -v {value}"
                );
            }
        }
        let _ = write!(
            text,
            "  iscsiadm -m node -T {iqn} --login\n\
             QEMU:\n  \
               qemu-system-x86_64 -drive \
               file=iscsi://{user}{first}/{iqn}/{lun},format=raw,if=virtio\n\
             libiscsi:\n  \
               iscsi-inq iscsi://{user}{first}/{iqn}/{lun}\n"
        );
        text
    }
}

/// What came of the demo: the last line of `-o json`.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Summary {
    /// Nothing was lost, and everything came back.
    pub(super) ok: bool,
    /// Nodes started.
    pub(super) nodes: u64,
    /// Until the cluster was healthy.
    pub(super) started_ms: u64,
    /// Nodes killed, by number, the owner first.
    pub(super) killed: Vec<u64>,
    /// Owner before and after.
    pub(super) owner_before: u64,
    /// Owner after the kill.
    pub(super) owner_after: Option<u64>,
    /// I/O in all phases.
    pub(super) reads: u64,
    /// Writes acknowledged in all phases.
    pub(super) writes: u64,
    /// I/O per second while all nodes ran.
    pub(super) operations_per_second: f64,
    /// I/Os that ended with an error.
    pub(super) errors: u64,
    /// Longest time without a completion while all nodes ran.
    pub(super) gap_before_ms: u64,
    /// The same around the kill.
    pub(super) gap_kill_ms: u64,
    /// The same around the nodes' return.
    pub(super) gap_return_ms: u64,
    /// Bytes copied to bring the nodes back.
    pub(super) resync_bytes: u64,
    /// From their start until all copies were in sync.
    pub(super) resync_ms: u64,
    /// Bytes with an acknowledged write.
    pub(super) acknowledged_bytes: u64,
    /// After the kill, and after the return.
    pub(super) verifications: Vec<Verification>,
    /// The whole demo.
    pub(super) elapsed_ms: u64,
}

/// One verification of every acknowledged write.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Verification {
    /// When.
    pub(super) when: &'static str,
    /// Blocks read back.
    pub(super) checked_blocks: u64,
    /// Acknowledged data that is gone.
    pub(super) lost: u64,
    /// Older data than was acknowledged.
    pub(super) stale: u64,
    /// Bytes that were never written there.
    pub(super) corrupt: u64,
    /// Blocks that could not be read.
    pub(super) unreadable: u64,
}

impl Verification {
    pub(super) fn new(when: &'static str, report: &VerifyReport) -> Self {
        Self {
            when,
            checked_blocks: report.checked_blocks,
            lost: report.findings.lost,
            stale: report.findings.stale,
            corrupt: report.findings.corrupt,
            unreadable: report.unreadable_blocks,
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.lost + self.stale + self.corrupt + self.unreadable == 0
    }

    pub(super) fn sentence(&self) -> String {
        if self.is_clean() {
            format!("{} blocks read back, none lost", self.checked_blocks)
        } else {
            format!(
                "{} blocks read back: {} lost, {} stale, {} corrupt, {} unreadable",
                self.checked_blocks, self.lost, self.stale, self.corrupt, self.unreadable
            )
        }
    }
}

impl Summary {
    pub(super) fn table(&self) -> String {
        let mut rows = vec![vec!["nodes started".into(), milliseconds(self.started_ms)]];
        rows.push(vec![
            "I/O, all nodes up".into(),
            format!(
                "{:.0} a second, longest gap {}",
                self.operations_per_second,
                milliseconds(self.gap_before_ms)
            ),
        ]);
        if !self.killed.is_empty() {
            let killed: Vec<String> = self.killed.iter().map(u64::to_string).collect();
            let owner = self
                .owner_after
                .map_or_else(String::new, |owner| format!(", {owner} took over"));
            rows.push(vec![
                "killed at once".into(),
                format!(
                    "nodes {} (owner {}{owner})",
                    killed.join(" and "),
                    self.owner_before
                ),
            ]);
            rows.push(vec![
                "I/O stood still".into(),
                format!(
                    "{} at the kill, {} at the return",
                    milliseconds(self.gap_kill_ms),
                    milliseconds(self.gap_return_ms)
                ),
            ]);
            rows.push(vec![
                "return".into(),
                format!(
                    "{} until in sync, {} copied",
                    milliseconds(self.resync_ms),
                    show_size(self.resync_bytes)
                ),
            ]);
        }
        rows.push(vec![
            "acknowledged".into(),
            format!(
                "{} writes to {}, {} errors",
                self.writes,
                show_size(self.acknowledged_bytes),
                self.errors
            ),
        ]);
        for verification in &self.verifications {
            rows.push(vec![
                format!("verified {}", verification.when),
                verification.sentence(),
            ]);
        }
        rows.push(vec!["took".into(), milliseconds(self.elapsed_ms)]);
        let rows = Rows {
            columns: vec!["what", "result"],
            rows,
        };
        table(&rows).to_string()
    }
}

pub(super) fn milliseconds(milliseconds: u64) -> String {
    if milliseconds < 1000 {
        format!("{milliseconds} ms")
    } else {
        format!("{:.1} s", milliseconds as f64 / 1000.0)
    }
}

pub(super) fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
