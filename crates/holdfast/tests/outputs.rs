//! Commands whose output cannot be written: a full disk, a reader that has gone.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Output, Stdio};

use harness::lone::Lone;
use harness::{EXECUTABLE, PATIENCE, alone, stderr};
use tokio::time::timeout;

/// What an output is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Look,
    Change,
    Secret,
}

use About::{Change, Look, Secret};

/// Every command of the API, and what it is heard to say if its output meets a full disk.
const COMMANDS: [(&str, About, &str); 16] = [
    ("node list", Look, "Nothing was changed"),
    ("node show 1", Look, "Nothing was changed"),
    ("node scrub 1", Look, "Nothing was changed"),
    ("node scrub 1 pause", Change, "the scrub was told, but"),
    ("cluster status", Look, "Nothing was changed"),
    ("cluster token", Secret, "Make another one"),
    ("volume list", Look, "Nothing was changed"),
    ("volume show v", Look, "Nothing was changed"),
    ("volume access v", Look, "Nothing was changed"),
    (
        "volume access v --allow iqn.2026-11.io.holdfast:a",
        Change,
        "the access list was changed, but",
    ),
    (
        "volume resize v --size +1MiB",
        Change,
        "volume v has its new size",
    ),
    (
        "volume rotate-secret s",
        Secret,
        "`holdfast volume rotate-secret s` makes another one",
    ),
    (
        "volume revoke-secrets s",
        Change,
        "the old secrets are void, but",
    ),
    (
        "volume redirect v owner",
        Change,
        "logins are sent as was said, but",
    ),
    ("volume move v --to 1", Change, "node 1 owns volume v, but"),
    (
        "volume create NEW --size 64MiB --copies 1",
        Secret,
        "makes a new secret",
    ),
];

#[test]
fn a_full_disk_under_an_output_is_a_failure_that_says_what_was_changed() {
    alone(async |folder| {
        let node = founded(folder).await;
        for (command, format, about, words) in commands() {
            let output = node.run(command, format, full()).await;
            let text = stderr(&output);
            assert_eq!(
                output.status.code(),
                Some(1),
                "{command} -o {format}: {text}"
            );
            assert!(text.contains(words), "{command} -o {format}: {text}");
            assert!(text.contains("No space left on device"), "{text}");
            let lost = text.contains("the secret could not be shown");
            assert_eq!(lost, about == Secret, "{text}");
        }
        let volumes = node.lone.fleet.client(0).volumes().await.unwrap();
        assert_eq!(volumes.len(), 2 + 4, "one for each form");
        node.lone.stop().await;
    });
}

#[test]
fn a_reader_that_has_gone_ends_a_command_quietly_unless_a_secret_is_lost() {
    alone(async |folder| {
        let node = founded(folder).await;
        for (command, format, about, words) in commands() {
            let output = node.run(command, format, closed()).await;
            let text = stderr(&output);
            if about == Secret {
                assert_eq!(output.status.code(), Some(1), "{command}: {text}");
                assert!(text.contains("is lost") && text.contains(words), "{text}");
            } else {
                assert_eq!(output.status.code(), Some(0), "{command}: {text}");
                assert_eq!(text, "", "{command} -o {format}");
            }
        }
        node.lone.stop().await;
    });
}

/// Every command in one form of output, and the last, with a secret, in each.
fn commands() -> impl Iterator<Item = (&'static str, &'static str, About, &'static str)> {
    const FORMATS: [&str; 4] = ["table", "json", "yaml", "csv"];
    let all = COMMANDS.into_iter().zip(FORMATS.into_iter().cycle());
    let last = COMMANDS[COMMANDS.len() - 1];
    let each = FORMATS[..3].iter().map(move |format| (last, *format));
    all.chain(each)
        .map(|((command, about, words), format)| (command, format, about, words))
}

#[test]
fn nothing_is_said_where_nobody_can_hear_and_the_exit_code_stays() {
    alone(async |folder| {
        let node = founded(folder).await;
        for error in [full(), closed()] {
            let mut command = node.command("volume show nothing", "table");
            command.stdout(Stdio::null()).stderr(error);
            let status = timeout(PATIENCE, command.status()).await.unwrap();
            assert_eq!(status.unwrap().code(), Some(4));
        }
        let mut command = node.command("volume delete v --yes", "");
        command.stdout(full()).stderr(full());
        let status = timeout(PATIENCE, command.status()).await.unwrap();
        assert_eq!(status.unwrap().code(), Some(0), "there is no output");
        node.lone.stop().await;
    });
}

#[test]
fn help_tools_of_a_stopped_node_and_the_demo_end_the_same_way() {
    alone(async |folder| {
        let node = founded(folder).await;
        let directory = node.lone.fleet.directory(0).to_owned();
        node.lone.stop().await;
        let directory = directory.to_str().unwrap();
        let image = folder.join("image");
        let image = image.to_str().unwrap();
        let demo = folder.join("demo");
        let demo = demo.to_str().unwrap();
        for (arguments, when_closed) in [
            (&["--help"][..], 0),
            (&["--version"], 0),
            (&["store", "check", directory], 0),
            (&["store", "dump", directory, "header"], 0),
            (&["store", "export", directory, "v", image], 0),
            (&["demo", "--serve", "--nodes", "1", "--dir", demo], 1),
        ] {
            for (output, code) in [(full(), 1), (closed(), when_closed)] {
                let mut command = tokio::process::Command::new(EXECUTABLE);
                command.args(arguments);
                let output = finish(command, output).await;
                let text = stderr(&output);
                assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
                assert!(!text.contains("panicked"), "{text}");
            }
        }
        assert!(
            !Path::new(demo).exists(),
            "the demo has removed what it made"
        );
    });
}

#[test]
fn a_founding_that_cannot_be_shown_has_happened() {
    alone(async |folder| {
        let mut node = Node {
            lone: Lone::start(Lone::prepared(folder), |_| {}),
        };
        node.lone.reach(holdfast_api::ClusterPhase::NoCluster).await;
        let output = node.run("cluster init", "json", full()).await;
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("the cluster exists, but"), "{text}");
        node.lone.reach(holdfast_api::ClusterPhase::Healthy).await;
        node.lone.stop().await;
    });
}

/// A node to command.
struct Node {
    lone: Lone,
}

/// A node with the volumes `v`, without CHAP, and `s`, with it.
async fn founded(folder: &Path) -> Node {
    let mut lone = Lone::start(Lone::prepared(folder), |_| {});
    lone.found().await;
    harness::volume(&lone.fleet, "s", 1).await;
    Node { lone }
}

impl Node {
    fn command(&self, line: &str, format: &str) -> tokio::process::Command {
        let api = format!("127.0.0.1:{}", self.lone.fleet.ports(0).api);
        let mut command = tokio::process::Command::new(EXECUTABLE);
        let fresh = format!("{format}-{}", std::process::id());
        let words = line.split_whitespace();
        command
            .args(words.map(|word| if word == "NEW" { &fresh } else { word }))
            .args((!format.is_empty()).then(|| format!("--output={format}")))
            .env("HOLDFAST_API", api)
            .kill_on_drop(true);
        command
    }

    async fn run(&self, line: &str, format: &str, output: Stdio) -> Output {
        finish(self.command(line, format), output).await
    }
}

async fn finish(mut command: tokio::process::Command, output: Stdio) -> Output {
    command
        .stdout(output)
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let ended = command.spawn().expect("a process").wait_with_output();
    let ended = timeout(PATIENCE, ended).await;
    ended.expect("the command ends").expect("its output")
}

fn full() -> Stdio {
    File::options()
        .write(true)
        .open("/dev/full")
        .unwrap()
        .into()
}

fn closed() -> Stdio {
    let (_reader, writer) = io::pipe().unwrap();
    writer.into()
}
