//! Foreign initiators against a served demo: what real peers see, with CHAP.
//!
//! | check | program | package |
//! |---|---|---|
//! | discovery with and without the right secret | `iscsi-ls` | libiscsi-bin |
//! | login refused without a secret and with a wrong one | `iscsi-inq` | libiscsi-bin |
//! | identity and size at every portal | `iscsi-inq`, `iscsi-readcapacity16` | libiscsi-bin |
//! | copies in, compares at another portal | `qemu-img` | qemu-utils, qemu-block-extra |
//! | the owner is killed in the middle of a copy, which ends without error | `qemu-img` | same |
//! | patterns written and read | `qemu-io` | same |
//! | copies in and out | `iscsi-dd` (not in Debian's libiscsi-bin) | libiscsi |
//! | conformance suites | `iscsi-test-cu` | libiscsi-bin |
//!
//! What is not installed is skipped by name, or is an error if the environment variable
//! [`REQUIRED`] is set. The volume's contents are overwritten.

use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::cluster::ServedDemo;
use crate::conformance::counts;
use crate::process::{Ended, capture, find, output_of, wait};
use crate::processes::{self, Signal};

/// Set it to 1 where a missing program must not go unnoticed.
const REQUIRED: &str = "HOLDFAST_REQUIRE_PEERS";

const QUESTION_LIMIT: Duration = Duration::from_secs(30);
const COPY_LIMIT: Duration = Duration::from_secs(120);
const SUITE_LIMIT: Duration = Duration::from_secs(120);

const COPY_BYTES: usize = 64 << 20;
/// Bytes a second of the copy that loses its owner: slow enough to be in its middle then.
const COPY_RATE: &str = "16M";
/// The owner is killed once the copy has come so far, in percent.
const KILL_AT_PERCENT: f64 = 25.0;

/// Suites of `iscsi-test-cu` that every test of has to pass or be skipped by the suite itself.
const SUITES: [&str; 24] = [
    "SCSI.TestUnitReady",
    "SCSI.Inquiry",
    "SCSI.ReadCapacity10",
    "SCSI.ReadCapacity16",
    "SCSI.ReportSupportedOpcodes",
    "SCSI.Read10",
    "SCSI.Read12",
    "SCSI.Read16",
    "SCSI.Write10",
    "SCSI.Write12",
    "SCSI.Write16",
    "SCSI.Verify16",
    "SCSI.WriteSame16",
    "SCSI.Unmap",
    "SCSI.CompareAndWrite",
    "SCSI.OrWrite",
    "SCSI.WriteAtomic16",
    "SCSI.ExtendedCopy",
    "SCSI.PrinReadKeys",
    "SCSI.ProutPreempt",
    "SCSI.ProutReserve",
    "SCSI.Reserve6",
    "iSCSI.iSCSIResiduals",
    "iSCSI.iSCSIcmdsn",
];

/// The packages that bring the programs, and how a program is told to be there.
const PROGRAMS: [(&str, &str); 6] = [
    ("iscsi-ls", "libiscsi-bin"),
    ("iscsi-inq", "libiscsi-bin"),
    ("iscsi-readcapacity16", "libiscsi-bin"),
    ("iscsi-test-cu", "libiscsi-bin"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
];

/// Runs every check whose programs are installed.
pub(crate) fn run(binary: &Path) -> anyhow::Result<()> {
    let missing = missing();
    if !missing.is_empty() {
        let list = missing.join(", ");
        ensure!(!are_required(), "not installed: {list}");
        println!("skipped for want of: {list}");
    }
    let here = |program: &str| !missing.iter().any(|name| name.starts_with(program));
    let demo = ServedDemo::start(binary)?;
    let peers = Peers::new(&demo)?;
    if here("iscsi-ls") && here("iscsi-inq") {
        peers.check("discovery", Peers::discovery)?;
        peers.check("wrong secrets are refused", Peers::wrong_secrets)?;
        peers.check("identity and size at every portal", Peers::identity)?;
    }
    if here("qemu-img") && here("qemu-io") {
        peers.check("a copy reads the same at another portal", Peers::copy)?;
        peers.check("patterns", Peers::patterns)?;
        peers.check("a copy outlives the owner", Peers::copy_through_takeover)?;
    }
    match find("iscsi-dd") {
        Some(program) => peers.check("iscsi-dd", |peers| peers.direct_copy(&program))?,
        None => println!("skipped: iscsi-dd, which Debian's libiscsi-bin lacks"),
    }
    if here("iscsi-test-cu") {
        peers.check("conformance", Peers::conformance)?;
    }
    Ok(())
}

/// Whether a missing program is an error.
pub(crate) fn are_required() -> bool {
    std::env::var_os(REQUIRED).is_some_and(|value| value == "1")
}

/// Programs that are not there, each with its package in brackets.
fn missing() -> Vec<String> {
    let mut missing: Vec<String> = PROGRAMS
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(program, package)| format!("{program} ({package})"))
        .collect();
    if find("qemu-img").is_some() && !qemu_speaks_iscsi() {
        missing.push("qemu-img with iSCSI (qemu-block-extra)".to_owned());
    }
    missing
}

fn qemu_speaks_iscsi() -> bool {
    // Refused at once by a port where nobody listens; without the driver it is never tried.
    let url = "iscsi://127.0.0.1:1/iqn.2026-11.example:none/0";
    capture(Command::new("qemu-img").args(["info", url]), QUESTION_LIMIT)
        .is_ok_and(|ended| !ended.text.contains("Unknown protocol"))
}

struct Peers<'a> {
    demo: &'a ServedDemo,
    credentials: Option<(String, String)>,
    _files: tempfile::TempDir,
    source: PathBuf,
}

impl<'a> Peers<'a> {
    fn new(demo: &'a ServedDemo) -> anyhow::Result<Self> {
        let _files = tempfile::tempdir()?;
        let source = _files.path().join("source");
        std::fs::write(&source, noise(COPY_BYTES))?;
        let credentials = demo.ready.username.clone().zip(demo.ready.secret.clone());
        Ok(Self {
            demo,
            credentials,
            _files,
            source,
        })
    }

    fn check(
        &self,
        name: &str,
        act: impl FnOnce(&Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        act(self).with_context(|| name.to_owned())?;
        println!("ok: {name}");
        Ok(())
    }

    fn portals(&self) -> &[String] {
        &self.demo.ready.portals
    }

    /// The URL of a portal as libiscsi writes it.
    fn portal_url(&self, portal: &str, secret: Option<&str>) -> String {
        let login = self.credentials.as_ref().zip(secret);
        match login {
            Some(((user, _), secret)) => format!("iscsi://{user}%{secret}@{portal}"),
            None => format!("iscsi://{portal}"),
        }
    }

    /// The URL of the volume at a portal.
    fn url(&self, portal: &str) -> String {
        let secret = self.credentials.as_ref().map(|(_, secret)| secret.as_str());
        self.unit_url(portal, secret)
    }

    fn unit_url(&self, portal: &str, secret: Option<&str>) -> String {
        let portal = self.portal_url(portal, secret);
        format!("{portal}/{}/{}", self.demo.ready.iqn, self.demo.ready.lun)
    }

    fn discovery(&self) -> anyhow::Result<()> {
        let iqn = &self.demo.ready.iqn;
        let secret = self.credentials.as_ref().map(|(_, secret)| secret.as_str());
        for portal in self.portals() {
            let url = self.portal_url(portal, secret);
            let said = output_of(Command::new("iscsi-ls").arg("-s").arg(url), QUESTION_LIMIT)?;
            ensure!(
                said.contains(iqn.as_str()),
                "{portal} does not list {iqn}:\n{said}"
            );
            ensure!(
                said.contains("DIRECT_ACCESS"),
                "{portal} shows no disk:\n{said}"
            );
        }
        Ok(())
    }

    fn wrong_secrets(&self) -> anyhow::Result<()> {
        if self.credentials.is_none() {
            bail!("the demo serves without CHAP, so nothing can be refused");
        }
        for secret in [None, Some("wrong-secret-16b")] {
            let url = self.unit_url(&self.portals()[0], secret);
            let Ended { status, text } =
                capture(Command::new("iscsi-inq").arg(url), QUESTION_LIMIT)?;
            ensure!(!status.success(), "secret {secret:?} was let in:\n{text}");
        }
        Ok(())
    }

    fn identity(&self) -> anyhow::Result<()> {
        let mut seen: Option<[String; 3]> = None;
        for portal in self.portals() {
            let url = self.url(portal);
            let standard = output_of(Command::new("iscsi-inq").arg(&url), QUESTION_LIMIT)?;
            let mut page = Command::new("iscsi-inq");
            // Vital product data page 80h: the unit's serial number.
            page.args(["-e", "1", "-c", "128"]).arg(&url);
            let serial = output_of(&mut page, QUESTION_LIMIT)?;
            let mut capacity = Command::new("iscsi-readcapacity16");
            let size = output_of(capacity.arg("-s").arg(&url), QUESTION_LIMIT)?;
            let here = [standard, serial, size];
            if let Some(before) = &seen {
                ensure!(*before == here, "{portal} differs: {before:?}, {here:?}");
            }
            seen = Some(here);
        }
        Ok(())
    }

    fn copy(&self) -> anyhow::Result<()> {
        let first = self.url(&self.portals()[0]);
        let last = self.url(self.portals().last().context("a portal")?);
        let mut convert = qemu_convert(&self.source, &first);
        output_of(&mut convert, COPY_LIMIT)?;
        self.compare(&last)
    }

    fn compare(&self, url: &str) -> anyhow::Result<()> {
        let mut compare = Command::new("qemu-img");
        compare.args(["compare", "-f", "raw", "-F", "raw"]);
        // The volume is longer than the file, so as much of it as the file has is cut out.
        let part = serde_json::json!({
            "driver": "raw",
            "size": COPY_BYTES,
            "file": self.qemu_node(url)?,
        });
        let part = format!("json:{part}");
        output_of(compare.arg(&self.source).arg(part), COPY_LIMIT)?;
        Ok(())
    }

    /// A URL of [`Peers::url`] as a block node of QEMU.
    fn qemu_node(&self, url: &str) -> anyhow::Result<serde_json::Value> {
        let portal = url.rsplit('@').next().unwrap_or(url);
        let portal = portal.trim_start_matches("iscsi://");
        let portal = portal.split('/').next().context("a portal in the URL")?;
        let mut node = serde_json::json!({
            "driver": "iscsi",
            "transport": "tcp",
            "portal": portal,
            "target": self.demo.ready.iqn,
            "lun": self.demo.ready.lun,
        });
        if let Some((user, secret)) = &self.credentials {
            node["user"] = user.as_str().into();
            node["password"] = secret.as_str().into();
        }
        Ok(node)
    }

    fn patterns(&self) -> anyhow::Result<()> {
        let url = self.url(&self.portals()[0]);
        let io = |commands: &[&str]| {
            let mut program = Command::new("qemu-io");
            program.args(["-f", "raw"]);
            for command in commands {
                program.args(["-c", command]);
            }
            capture(program.arg(&url), QUESTION_LIMIT)
        };
        let right = io(&[
            "write -P 0xab 1M 1M",
            "read -P 0xab 1M 1M",
            "write -z 1M 64k",
            "read -P 0 1M 64k",
            "read -P 0xab 1088k 960k",
            "discard 1M 1M",
            "flush",
        ])?;
        ensure!(right.status.success(), "{}", right.text);
        // The judge has to be able to object.
        let wrong = io(&["write -P 0xab 1M 4k", "read -P 0xac 1M 4k"])?;
        ensure!(
            !wrong.status.success(),
            "qemu-io does not compare: {}",
            wrong.text
        );
        Ok(())
    }

    /// The copy runs through a node that lives on, while the node that orders its I/O is killed.
    fn copy_through_takeover(&self) -> anyhow::Result<()> {
        let (owner, owner_portal) = self.demo.owner()?;
        let portal = self
            .portals()
            .iter()
            .find(|portal| **portal != owner_portal);
        let url = self.url(portal.context("a portal of another node")?);
        let mut convert = qemu_convert(&self.source, &url);
        convert.args(["-p", "-r", COPY_RATE]);
        let mut child = convert.stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("the copy has no output")?;
        let mut killed_at = None;
        let mut shown = String::new();
        for byte in BufReader::new(output).bytes() {
            // Progress lines end with a carriage return: "    (12.50/100%)".
            match byte? {
                b'\r' | b'\n' => {
                    let percent = progress(&shown);
                    if killed_at.is_none() && percent.is_some_and(|p| p >= KILL_AT_PERCENT) {
                        processes::signal(owner.pid, Signal::KILL)?;
                        killed_at = percent;
                    }
                    shown.clear();
                }
                byte => shown.push(char::from(byte)),
            }
        }
        let status = wait(child, COPY_LIMIT)?;
        ensure!(status.success(), "the copy failed: {status}");
        let killed_at = killed_at.context("the copy ended before the owner was killed")?;
        ensure!(
            killed_at < 100.0,
            "the copy was over when the owner was killed"
        );
        let (successor, _) = self.demo.owner()?;
        ensure!(
            successor.pid != owner.pid,
            "the killed node still counts as the owner"
        );
        println!("  the owner was killed at {killed_at} % of the copy");
        self.compare(&url)
    }

    fn direct_copy(&self, program: &Path) -> anyhow::Result<()> {
        // It copies between two volumes: onto itself, through two portals.
        let first = self.url(self.portals().first().context("a portal")?);
        let last = self.url(self.portals().last().context("a portal")?);
        output_of(
            Command::new(program).args(["-s", &first, "-d", &last]),
            COPY_LIMIT,
        )?;
        Ok(())
    }

    fn conformance(&self) -> anyhow::Result<()> {
        let url = self.living_url()?;
        let mut failed = Vec::new();
        for suite in SUITES {
            let mut program = Command::new("iscsi-test-cu");
            program
                .args(["--dataloss", "--normal", "--test", suite])
                .arg(&url);
            let ended = capture(&mut program, SUITE_LIMIT)?;
            match counts(&ended.text) {
                Some((ran, 0)) if ran > 0 => println!("  {suite}: {ran} passed"),
                Some(_) | None => {
                    println!("{}", ended.text);
                    failed.push(suite);
                }
            }
        }
        ensure!(
            failed.is_empty(),
            "suites that failed: {}",
            failed.join(", ")
        );
        // The target is alive and well after all that.
        output_of(Command::new("iscsi-inq").arg(&url), QUESTION_LIMIT)?;
        Ok(())
    }

    /// The volume at a portal that answers: one node may have been killed before.
    fn living_url(&self) -> anyhow::Result<String> {
        let urls = self.portals().iter().map(|portal| self.url(portal));
        urls.into_iter()
            .find(|url| {
                capture(Command::new("iscsi-inq").arg(url), QUESTION_LIMIT)
                    .is_ok_and(|ended| ended.status.success())
            })
            .context("no portal answers")
    }
}

fn qemu_convert(source: &Path, url: &str) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-n", "-f", "raw", "-O", "raw"]);
    // Options may follow the names: QEMU's parser permutes them.
    command.arg(source).arg(url);
    command
}

/// The figure of a progress line of `qemu-img -p`.
fn progress(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once('(')?;
    rest.split_once('/')?.0.trim().parse().ok()
}

/// Bytes that no reduction makes smaller, the same every time (xorshift).
fn noise(bytes: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(bytes / 8).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_a_line() {
        assert_eq!(progress("    (12.50/100%)"), Some(12.5));
        assert_eq!(progress("warning"), None);
    }

    #[test]
    fn noise_is_the_same_every_time_and_does_not_repeat() {
        let bytes = noise(64);
        assert_eq!(bytes, noise(64));
        assert_ne!(bytes[..8], bytes[8..16]);
    }
}
