//! A real Linux kernel as initiator: a Debian guest with open-iscsi and dm-multipath against a
//! served cluster whose owners are killed under load.
//!
//! | step | what has to hold |
//! |---|---|
//! | discovery | SendTargets at every portal reports the target |
//! | secrets | a wrong one, and a wrong proof of the target, end the login |
//! | single path | one session to a portal that lives: the owner is killed, I/O goes on |
//! | reconnect | the session's own portal is killed and started again: I/O goes on |
//! | ext4 | two paths and dm-multipath, one to the owner, which is killed |
//! | xfs | five paths with mutual CHAP: the owner is killed, the next one stops without a word |
//! | pause | the node of the path in use stands still for 20 s and wakes: nothing lands late |
//! | ALUA | I/O goes to the owner's portal, after a takeover to the new one's |
//! | fstrim | discards are taken; says whether the nodes hold less than before |
//!
//! Load means: files written and synchronised one after another, whose checksums are kept in the
//! guest's memory. After each kill no write may have failed, every checksum has to be right when
//! read from the disk again, and the filesystem has to be clean. The kernel's log is searched for
//! complaints of filesystems, and of devices that no path failure explains.

mod archive;
mod machine;
mod packages;
mod scenario;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::cluster::ServedDemo;
use crate::peers;
use crate::process::find;
use machine::Machine;
use packages::Image;
use scenario::Scenario;

/// Everything together; the test takes about three and a half minutes on two cores.
const TOTAL_LIMIT: Duration = Duration::from_secs(15 * 60);

/// What came of one step.
struct Taken {
    name: &'static str,
    time: Duration,
    note: String,
}

/// Runs the test with this binary.
pub(crate) fn run(binary: &Path) -> anyhow::Result<()> {
    let cache = cache()?;
    // Downloads are not the test's time.
    let image = packages::image(&cache)?;
    run_with(binary, &image, &cache)
}

/// The same, but what this machine cannot do is skipped by name: it has no emulator (unless that
/// is required), no Debian packages, or no way to a mirror.
pub(crate) fn run_if_possible(binary: &Path) -> anyhow::Result<()> {
    if find(machine::EMULATOR).is_none() && !peers::are_required() {
        println!(
            "skipped for want of: {} (qemu-system-x86)",
            machine::EMULATOR
        );
        return Ok(());
    }
    let cache = cache()?;
    match packages::image(&cache) {
        Ok(image) => run_with(binary, &image, &cache),
        Err(error) => {
            println!("skipped: no kernel for the guest: {error:#}");
            Ok(())
        }
    }
}

fn cache() -> anyhow::Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let cache = Path::new(&target).join("e2e-linux");
    std::fs::create_dir_all(&cache)?;
    Ok(cache)
}

fn run_with(binary: &Path, image: &Image, cache: &Path) -> anyhow::Result<()> {
    let begin = Instant::now();
    let demo = ServedDemo::start(binary)?;
    let console = cache.join("console.log");
    let machine = Machine::boot(image, &console)?;
    let mut steps = Steps {
        taken: vec![Taken {
            name: "cluster and guest start",
            time: begin.elapsed(),
            note: format!("Linux {}", machine.kernel),
        }],
        begin,
    };
    let mut scenario = Scenario::new(demo, machine)?;
    let outcome = steps.all(&mut scenario);
    steps.print();
    if outcome.is_err() {
        let words = scenario.machine.last_words();
        println!(
            "\nthe kernel's last words (all: {}):\n{words}",
            console.display()
        );
    }
    outcome
}

struct Steps {
    taken: Vec<Taken>,
    begin: Instant,
}

impl Steps {
    fn all(&mut self, scenario: &mut Scenario) -> anyhow::Result<()> {
        for (name, act) in scenario::STEPS {
            if self.begin.elapsed() >= TOTAL_LIMIT {
                bail!("not done within {} s", TOTAL_LIMIT.as_secs());
            }
            let begin = Instant::now();
            let outcome = act(scenario).with_context(|| name.to_owned());
            let time = begin.elapsed();
            let note = match &outcome {
                Ok(note) => note.clone(),
                Err(_) => "FAILED".to_owned(),
            };
            println!("{name}: {note} ({:.1} s)", time.as_secs_f64());
            self.taken.push(Taken { name, time, note });
            outcome?;
        }
        Ok(())
    }

    fn print(&self) {
        println!("\n{:<34} {:>8}  result", "step", "seconds");
        for Taken { name, time, note } in &self.taken {
            println!("{name:<34} {:>8.1}  {note}", time.as_secs_f64());
        }
        let total = self.begin.elapsed().as_secs_f64();
        println!("{:<34} {total:>8.1}", "together");
    }
}
