//! A virtual machine with a real kernel, told what to do over its second serial port.
//!
//! Promises: a [`Machine`] that is dropped has ended; every question has a time limit; a machine
//! that ends or falls silent is an error with the last words of its kernel, never a hang.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::packages::Image;
use crate::process::{find, stop_tree};

/// From the package qemu-system-x86.
pub(crate) const EMULATOR: &str = "qemu-system-x86_64";
/// Usually 15 s on an idle core.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// About one boot in a hundred stops without a word in the emulator.
const BOOT_TRIES: u32 = 2;
const LAST_WORDS: usize = 40;

/// See the module's header.
pub(crate) struct Machine {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    console: PathBuf,
    questions: u64,
    /// What `uname -r` says in the guest.
    pub(crate) kernel: String,
}

/// What a command of the guest said and how it ended.
struct Answer {
    status: i32,
    text: String,
}

impl Machine {
    /// Boots and waits until the guest listens. What its kernel says goes to the file `console`.
    pub(crate) fn boot(image: &Image, console: &Path) -> anyhow::Result<Self> {
        let missing = format!("{EMULATOR} (qemu-system-x86) is not installed");
        ensure!(find(EMULATOR).is_some(), missing);
        let mut tries = 1;
        loop {
            match Self::boot_once(image, console) {
                Err(error) if tries < BOOT_TRIES => println!("booting again: {error:#}"),
                outcome => return outcome,
            }
            tries += 1;
        }
    }

    fn boot_once(image: &Image, console: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(EMULATOR);
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-m", "1024", "-smp", "1"])
            // Emulation works on every host. Without 16-byte compare-and-exchange, because some
            // releases of the emulator get it wrong now and then, which hangs the kernel.
            .args(["-accel", "tcg", "-cpu", "qemu64,-cx16"])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initramfs)
            .args([
                "-append",
                "console=ttyS0 net.ifnames=0 panic=-1 log_buf_len=4M",
            ])
            .args(["-netdev", "user,id=net"])
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .args(["-device", "virtio-rng-pci"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-chardev", "stdio,id=control,signal=off"])
            .args(["-serial", "chardev:control"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {EMULATOR}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            stop_tree(&mut child)?;
            bail!("{EMULATOR} has no input or output");
        };
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                // Nobody listens any more: the machine is about to be dropped.
                if sender.send(line.trim_end_matches('\r').to_owned()).is_err() {
                    break;
                }
            }
        });
        let mut machine = Self {
            child,
            input,
            lines,
            console: console.to_owned(),
            questions: 0,
            kernel: String::new(),
        };
        let deadline = Instant::now() + BOOT_LIMIT;
        let kernel = machine.wait_for_line("boot", deadline, |line| {
            line.strip_prefix("ready ").map(ToOwned::to_owned)
        })?;
        machine.kernel = kernel;
        Ok(machine)
    }

    /// What a command of the guest printed; an error if its status is not 0.
    pub(crate) fn run(&mut self, command: &str, limit: Duration) -> anyhow::Result<String> {
        let Answer { status, text } = self.ask(command, limit)?;
        ensure!(
            status == 0,
            "in the guest, `{command}` ended with {status}:\n{text}"
        );
        Ok(text)
    }

    fn ask(&mut self, command: &str, limit: Duration) -> anyhow::Result<Answer> {
        ensure!(
            !command.contains('\n') && command.len() < 4000,
            "not one line for a terminal: {command}"
        );
        self.questions += 1;
        let id = format!("q{}", self.questions);
        writeln!(self.input, "{id} {command}").context("the machine hears nothing")?;
        let (output, end) = (format!("{id} | "), format!("{id} = "));
        let mut text = String::new();
        let status = self.wait_for_line(command, Instant::now() + limit, |line| {
            if let Some(said) = line.strip_prefix(&output) {
                text.push_str(said);
                text.push('\n');
            }
            line.strip_prefix(&end)?.parse().ok()
        })?;
        Ok(Answer { status, text })
    }

    fn wait_for_line<T>(
        &mut self,
        what: &str,
        deadline: Instant,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> anyhow::Result<T> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(found) = wanted(&line) {
                        return Ok(found);
                    }
                }
                Err(error) => bail!(
                    "the guest did not answer to `{what}`: {error}; its kernel said last:\n{}",
                    self.last_words()
                ),
            }
        }
    }

    /// The end of what the kernel has said.
    pub(crate) fn last_words(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its disks are in its memory: there is nothing to shut down.
        let _ = stop_tree(&mut self.child);
    }
}
