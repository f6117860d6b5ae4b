//! Ports, tokens and identities that are not as they should be.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::io::Read as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use harness::{EXECUTABLE, PATIENCE, alone, cluster, options, run, stderr};
use holdfast::fleet::Fleet;
use holdfast_api::{ClusterPhase, NewCluster};

/// Runs `node start` with ports that the system chooses, until it ends by itself.
async fn start(directory: &Path, more: &[&str], token: Option<&str>) -> Output {
    let mut command = Command::new(EXECUTABLE);
    command
        .args(["node", "start", "--listen", "127.0.0.1", "--data"])
        .arg(directory)
        .args(["--link-port", "0", "--api-port", "0", "--portal-port", "0"])
        .args([
            "--journal-size",
            "32MiB",
            "--home-size",
            "1GiB",
            "--home-sparse",
        ])
        .args(more);
    if let Some(token) = token {
        command.env("HOLDFAST_JOIN", token);
    }
    run(command).await
}

fn refused(output: &Output, code: i32, words: &str) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(words), "{text}");
}

#[test]
fn a_taken_port_is_named_and_leaves_the_directory_untouched() {
    alone(async |folder| {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        for option in ["--api-port", "--link-port", "--portal-port"] {
            let data = folder.join(option);
            let mut command = Command::new(EXECUTABLE);
            command
                .args(["node", "start", "--listen", "127.0.0.1", "--data"])
                .arg(&data);
            for other in ["--api-port", "--link-port", "--portal-port"] {
                let value = if other == option { port.as_str() } else { "0" };
                command.args([other, value]);
            }
            refused(&run(command).await, 1, &format!("choose one with {option}"));
            assert!(!data.join("identity.json").exists());
        }
    });
}

#[test]
fn an_api_without_a_log_in_is_not_opened_to_other_machines_by_accident() {
    alone(async |folder| {
        let output = start(folder, &["--api-listen", "0.0.0.0"], None).await;
        refused(&output, 2, "--api-insecure");
    });
}

#[test]
fn tokens_that_are_cut_mistyped_or_used_up_are_refused() {
    alone(async |folder| {
        let fleet = cluster(&folder.join("one"), 1).await;
        let token = fleet.token(0).await.unwrap();
        let newcomer = folder.join("newcomer");

        let cut = start(&newcomer, &[], Some(&token[..token.len() - 5])).await;
        refused(&cut, 2, "was cut");
        let last = if token.ends_with('A') { "B" } else { "A" };
        let mistyped = format!("{}{last}", &token[..token.len() - 1]);
        refused(&start(&newcomer, &[], Some(&mistyped)).await, 2, "mistyped");

        let mut joined = Fleet::prepare(options(&folder.join("two"), 1)).unwrap();
        joined.start(0, Some(&token)).unwrap();
        let up = |status: &holdfast_api::ClusterStatus| status.nodes_up == 2;
        joined.wait_for(0, "node", PATIENCE, up).await.unwrap();
        refused(&start(&newcomer, &[], Some(&token)).await, 1, "used up");
    });
}

#[test]
fn a_node_of_one_cluster_does_not_join_another() {
    alone(async |folder| {
        let mut one = cluster(&folder.join("one"), 1).await;
        let two = cluster(&folder.join("two"), 1).await;
        one.kill(&[0]).await.unwrap();
        let token = two.token(0).await.unwrap();
        let output = start(one.directory(0), &[], Some(&token)).await;
        refused(&output, 1, "the token is of another cluster");
        // Without the token it is what it was.
        one.start(0, None).unwrap();
        one.wait_until_healthy(PATIENCE).await.unwrap();
    });
}

#[test]
fn a_directory_in_use_is_refused() {
    alone(async |folder| {
        let fleet = cluster(folder, 1).await;
        let output = start(fleet.directory(0), &[], None).await;
        refused(&output, 1, "in use by another process");
    });
}

#[test]
fn of_two_starts_of_a_copied_directory_one_ends() {
    alone(async |folder| {
        let mut fleet = cluster(&folder.join("fleet"), 3).await;
        let copy = folder.join("copy");
        copy_files(fleet.directory(2), &copy);
        // The copy is one start ahead, so it is the running node that is a ghost now.
        let mut ghost = Command::new(EXECUTABLE);
        ghost
            .args(["node", "start", "--listen", "127.0.0.1", "--data"])
            .arg(&copy)
            .args(["--link-port", "0", "--api-port", "0", "--portal-port", "0"])
            .arg("--end-with-stdin")
            .stdin(std::process::Stdio::piped())
            .stderr(std::fs::File::create(folder.join("copy.log")).unwrap());
        let mut ghost = tokio::process::Command::from(ghost)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let ended = tokio::time::timeout(PATIENCE, fleet.reap(2)).await;
        let status = ended.expect("the older start ends").unwrap();
        assert_eq!(status.code(), Some(1));
        let log = std::fs::read_to_string(fleet.log(2)).unwrap();
        assert!(log.contains("is its data directory in use twice"), "{log}");
        // The cluster goes on with the newer one.
        assert!(ghost.try_wait().unwrap().is_none(), "the newer start runs");
        let whole = |status: &holdfast_api::ClusterStatus| status.nodes_up == 3;
        let whole = fleet.wait_for(0, "whole cluster", PATIENCE, whole).await;
        assert_eq!(whole.unwrap().phase, ClusterPhase::Healthy);

        // An older copy of the directory, started when a newer start is known.
        ghost.kill().await.unwrap();
        let older = folder.join("older");
        copy_files(fleet.directory(2), &older);
        let identity = older.join("identity.json");
        let text = std::fs::read_to_string(&identity).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["incarnation"] = 0.into();
        std::fs::write(&identity, json.to_string()).unwrap();
        let output = start(&older, &[], None).await;
        refused(&output, 1, "restored from a copy");
    });
}

#[test]
fn a_waiting_node_says_so_and_refuses_bad_names() {
    alone(async |folder| {
        let mut fleet = Fleet::prepare(options(folder, 1)).unwrap();
        fleet.start(0, None).unwrap();
        let waiting =
            |status: &holdfast_api::ClusterStatus| status.phase == ClusterPhase::NoCluster;
        let status = fleet.wait_for(0, "node", PATIENCE, waiting).await.unwrap();
        assert!(status.explanations[0].contains("holdfast cluster init"));
        let volumes = fleet.client(0).volumes().await.unwrap_err().to_string();
        assert!(volumes.contains("no cluster yet"), "{volumes}");
        let name = NewCluster {
            name: "\u{7}".into(),
        };
        let refused = fleet.client(0).found(&name).await.unwrap_err();
        assert!(refused.to_string().contains("no name for a cluster"));
        let status = fleet.stop(0, PATIENCE).await.unwrap();
        assert!(status.success());
    });
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        // Sparse, as the original is: of the home only its manifest matters here.
        let name = entry.file_name();
        if name == "home" {
            let size = entry.metadata().unwrap().len();
            let mut manifest = std::fs::File::open(entry.path()).unwrap().take(8 << 20);
            let mut home = std::fs::File::create(to.join(name)).unwrap();
            std::io::copy(&mut manifest, &mut home).unwrap();
            home.set_len(size).unwrap();
        } else {
            std::fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}
