//! The conformance tests of libiscsi (`iscsi-test-cu`) against a served demo of five nodes.
//!
//! Each test is a process of its own with a time limit, so that one that hangs or asserts costs
//! no other its result. A test passes, is skipped by its own decision (it says why), or fails:
//! also if it ends by a signal or runs out of time. `docs/conformance.md` lists what is skipped.
//!
//! Budget: some 230 tests, at most [`BUDGET`] together on a machine of two cores; more is a
//! failure, as a test that became slow is one of the things to find.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::cluster::ServedDemo;
use crate::process::{capture, find, output_of, release_binary};
use crate::trixie::{self, Program};

/// Tests that no target can pass, and why; see `docs/conformance.md`.
const FAULTY: [(&str, &str); 1] = [(
    "iSCSI.iSCSITMF.LUNResetSimpleAsync",
    "asserts that an answer has come before it receives anything",
)];
/// The same of version 1.20.
const FAULTY_IN_13: [(&str, &str); 1] = [(
    "SCSI.CompareAndWrite.InvalidDataOutSize",
    "means to send a wrong length, sends a right one, and expects it to be refused",
)];
/// Runs on a volume whose blocks are its physical blocks. On another one it expects an answer for
/// another block than it asks about.
const LARGE_BLOCKS: &str = "SCSI.GetLBAStatus.UnmapSingle";
/// Wants a unit that is write-protected.
const READ_ONLY: &str = "SCSI.ReadOnly.ReadOnlySBC";

const LIST_LIMIT: Duration = Duration::from_secs(30);
/// The example that sets the bit is built first.
const BUILD_LIMIT: Duration = Duration::from_secs(15 * 60);
const TEST_LIMIT: Duration = Duration::from_secs(60);
const BUDGET: Duration = Duration::from_secs(20 * 60);
/// Lines of a failed test's output that are shown.
const LINES_SHOWN: usize = 12;

/// Which tests run how.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// With a header digest; libiscsi has no data digests.
    #[arg(long)]
    digests: bool,
    /// Through a node that does not own the volume, with the owner as the second path.
    #[arg(long)]
    portal_not_owner: bool,
    /// The tests of this Debian, instead of those that are installed; fetched once.
    #[arg(long, value_name = "VERSION", value_parser = ["13"])]
    debian: Option<String>,
    /// Only tests whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Skipped(String),
    Faulty(&'static str),
    Failed(String),
}

/// Runs every test; an error if any failed.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let suite = Suite::of(options)?;
    let listed = output_of(suite.command().arg("--list"), LIST_LIMIT)?;
    let mut tests = names(&listed);
    if let Some(part) = &options.only {
        tests.retain(|name| name.contains(part.as_str()));
    }
    ensure!(!tests.is_empty(), "no test to run");
    let demo = ServedDemo::start(&release_binary()?)?;
    let portals = portals(&demo, options.portal_not_owner)?;
    let urls = portals
        .each_ref()
        .map(|portal| url(&demo, portal, options.digests));
    let begin = Instant::now();
    let mut verdicts = BTreeMap::new();
    for name in tests {
        let verdict = if name == READ_ONLY {
            write_protected(&demo, &portals[0], || suite.run_one(&name, &urls))?
        } else if name == LARGE_BLOCKS {
            suite.run_one(&name, &large_blocks(&demo, options.digests)?)
        } else {
            suite.run_one(&name, &urls)
        };
        if let Verdict::Failed(lines) = &verdict {
            println!("FAILED {name}\n{lines}\n");
        }
        verdicts.insert(name, verdict);
    }
    let took = begin.elapsed();
    report(&verdicts, took);
    let failed = verdicts
        .values()
        .filter(|v| matches!(v, Verdict::Failed(_)));
    let failed = failed.count();
    ensure!(failed == 0, "{failed} tests failed");
    ensure!(
        took <= BUDGET,
        "{} s are more than the budget of {} s",
        took.as_secs(),
        BUDGET.as_secs()
    );
    Ok(())
}

/// The tests of the families SCSI and iSCSI; the other families repeat them.
fn names(listed: &str) -> Vec<String> {
    let lines = listed.lines().map(str::trim);
    let tests = lines.filter(|line| {
        let family = line.starts_with("SCSI.") || line.starts_with("iSCSI.");
        family && line.matches('.').count() == 2
    });
    tests.map(ToOwned::to_owned).collect()
}

/// The owner's portal and another one; the tests' main path is the first.
fn portals(demo: &ServedDemo, other_first: bool) -> anyhow::Result<[String; 2]> {
    let (_, owner) = demo.owner()?;
    let mut others = demo.ready.portals.iter();
    let other = others
        .find(|portal| **portal != owner)
        .context("a portal that is not the owner's")?
        .clone();
    Ok(if other_first {
        [other, owner]
    } else {
        [owner, other]
    })
}

/// The volume at a portal.
fn url(demo: &ServedDemo, portal: &str, digests: bool) -> String {
    let ready = &demo.ready;
    let login = match (&ready.username, &ready.secret) {
        (Some(user), Some(secret)) => format!("{user}%{secret}@"),
        _ => String::new(),
    };
    let digest = if digests { "?header_digest=crc32c" } else { "" };
    format!(
        "iscsi://{login}{portal}/{}/{}{digest}",
        ready.iqn, ready.lun
    )
}

/// Runs a test while the unit is write-protected at the node of this portal: mode pages are a
/// node's own.
fn write_protected(
    demo: &ServedDemo,
    portal: &str,
    test: impl FnOnce() -> Verdict,
) -> anyhow::Result<Verdict> {
    let set = |state: &str| {
        let mut command = crate::process::cargo();
        command.args(["run", "--quiet", "--release", "--package"]);
        command.args(["holdfast-initiator", "--example", "write_protect", "--"]);
        command.args(["--portal", portal, "--target", &demo.ready.iqn, state]);
        if let (Some(user), Some(secret)) = (&demo.ready.username, &demo.ready.secret) {
            command
                .args(["--chap-user", user])
                .env("CHAP_SECRET", secret);
        }
        output_of(&mut command, BUILD_LIMIT)
    };
    set("on")?;
    let verdict = test();
    set("off")?;
    Ok(verdict)
}

/// A volume of 4096-byte blocks at its owner's portal and at another one.
fn large_blocks(demo: &ServedDemo, digests: bool) -> anyhow::Result<[String; 2]> {
    const NAME: &str = "large-blocks";
    let volume = demo.create_large_block_volume(NAME, "1GiB")?;
    let (_, owner) = demo.owner_of(NAME)?;
    let others = volume.portals.iter().find(|portal| **portal != owner);
    let other = others.context("a portal that is not the owner's")?;
    let digest = if digests { "?header_digest=crc32c" } else { "" };
    let (user, secret) = (&volume.credentials.username, &volume.credentials.secret);
    Ok([&owner, other]
        .map(|portal| format!("iscsi://{user}%{secret}@{portal}/{}/0{digest}", volume.iqn)))
}

/// Whose tests are run.
enum Suite {
    Installed,
    Debian13(Program),
}

impl Suite {
    fn of(options: &Options) -> anyhow::Result<Self> {
        if options.debian.is_some() {
            return Ok(Self::Debian13(trixie::iscsi_test_cu()?));
        }
        if find("iscsi-test-cu").is_none() {
            bail!("iscsi-test-cu is not installed (Debian: libiscsi-bin)");
        }
        Ok(Self::Installed)
    }

    fn command(&self) -> Command {
        match self {
            Self::Installed => Command::new("iscsi-test-cu"),
            Self::Debian13(program) => program.command(),
        }
    }

    fn faulty(&self, name: &str) -> Option<&'static str> {
        let of_13: &[_] = match self {
            Self::Installed => &[],
            Self::Debian13(_) => &FAULTY_IN_13,
        };
        let mut all = FAULTY.iter().chain(of_13);
        all.find(|(faulty, _)| *faulty == name).map(|(_, why)| *why)
    }

    fn run_one(&self, name: &str, urls: &[String; 2]) -> Verdict {
        let mut program = self.command();
        // Some tests say only so that they skip themselves.
        program.args(["--dataloss", "--Verbose-scsi", "--test", name]);
        program.args(urls);
        let verdict = match capture(&mut program, TEST_LIMIT) {
            Ok(ended) => judge(&ended.text),
            Err(error) => Verdict::Failed(format!("{error:#}")),
        };
        match (verdict, self.faulty(name)) {
            (Verdict::Failed(_), Some(why)) => Verdict::Faulty(why),
            (verdict, _) => verdict,
        }
    }
}

/// What a test's output says. One that asserts away or crashes has no summary.
fn judge(text: &str) -> Verdict {
    let last = || {
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
    };
    match counts(text) {
        Some((1, 0)) => {}
        Some(_) | None => return Verdict::Failed(last()),
    }
    let skipped = text.lines().find_map(|line| line.split_once("[SKIPPED]"));
    match skipped {
        Some((_, why)) => Verdict::Skipped(why.trim().to_owned()),
        None => Verdict::Passed,
    }
}

/// Tests that ran and that failed: the line "tests  total ran passed failed inactive" of a CUnit
/// summary.
pub(crate) fn counts(text: &str) -> Option<(u64, u64)> {
    let mut lines = text.lines().map(str::trim_start);
    let line = lines.find(|line| line.starts_with("tests "))?;
    let numbers: Vec<u64> = line.split_whitespace().flat_map(str::parse).collect();
    let [_, ran, _, failed, _] = numbers[..] else {
        return None;
    };
    Some((ran, failed))
}

fn report(verdicts: &BTreeMap<String, Verdict>, took: Duration) {
    let mut suites: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    for (name, verdict) in verdicts {
        let suite = name
            .rsplit_once('.')
            .map_or(name.as_str(), |(suite, _)| suite);
        let column = match verdict {
            Verdict::Passed => 0,
            Verdict::Skipped(_) => 1,
            Verdict::Faulty(_) => 2,
            Verdict::Failed(_) => 3,
        };
        suites.entry(suite).or_default()[column] += 1;
    }
    let head = ["passed", "skipped", "faulty", "failed"];
    println!("{:<32} {}", "suite", row(&head));
    let mut all = [0; 4];
    for (suite, counted) in &suites {
        println!("{suite:<32} {}", row(counted));
        for (sum, count) in all.iter_mut().zip(counted) {
            *sum += count;
        }
    }
    println!("{:<32} {}", "together", row(&all));
    println!("in {:.0} s", took.as_secs_f64());
    for (name, verdict) in verdicts {
        match verdict {
            Verdict::Skipped(why) => println!("skipped {name}: {why}"),
            Verdict::Faulty(why) => println!("faulty {name}: it {why}"),
            Verdict::Passed | Verdict::Failed(_) => {}
        }
    }
}

fn row<T: std::fmt::Display>(cells: &[T]) -> String {
    cells.iter().map(|cell| format!("{cell:>8}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(ran: u32, failed: u32) -> String {
        format!("Run Summary: Type Total Ran Passed Failed Inactive\n tests 1 {ran} 1 {failed} 0\n")
    }

    #[test]
    fn a_test_passes_only_if_it_ran_and_none_failed() {
        assert_eq!(judge(&summary(1, 0)), Verdict::Passed);
        for text in [summary(0, 0), summary(1, 1), "Aborted".to_owned()] {
            assert!(matches!(judge(&text), Verdict::Failed(_)), "{text}");
        }
    }

    #[test]
    fn a_skipped_test_says_why() {
        let text = format!(
            "    [SKIPPED] SANITIZE is not implemented.\n{}",
            summary(1, 0)
        );
        let expected = Verdict::Skipped("SANITIZE is not implemented.".to_owned());
        assert_eq!(judge(&text), expected);
    }

    #[test]
    fn tests_of_two_families_are_listed_once() {
        let listed = "ALL\nALL.Read6\nALL.Read6.Simple\nSCSI.Read6\nSCSI.Read6.Simple\n\
                      iSCSI.iSCSITMF.AbortTaskSimpleAsync\nLINUX.Read10.Simple\n";
        let expected = ["SCSI.Read6.Simple", "iSCSI.iSCSITMF.AbortTaskSimpleAsync"];
        assert_eq!(names(listed), expected);
    }

    #[test]
    fn a_summary_without_failures_is_told_from_one_with() {
        let text = "Run Summary:    Type  Total    Ran Passed Failed Inactive\n\
                    suites      1      1    n/a      0        0\n\
                    tests      5      5      4      1        0\n\
                    asserts   2064   2064   2063      1      n/a\n";
        assert_eq!(counts(text), Some((5, 1)));
        assert_eq!(counts("Login failed"), None);
    }
}
