//! The demo, as a script sees it.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use harness::{EXECUTABLE, PATIENCE, alone, run, stderr, stdout};
use holdfast_initiator::{Chap, Disk, DiskOptions, Error, Secret, SessionOptions};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::{sleep, timeout};

#[test]
fn the_demo_checks_itself_cleans_up_and_runs_again() {
    alone(async |folder| {
        for _ in 0..2 {
            let mut command = Command::new(EXECUTABLE);
            command
                .args([
                    "demo",
                    "--check",
                    "-o",
                    "json",
                    "--volume-size",
                    "64MiB",
                    "--dir",
                ])
                .arg(folder);
            let output = run(command).await;
            assert!(output.status.success(), "{}", stderr(&output));
            let text = stdout(&output);
            let lines: Vec<serde_json::Value> = text
                .lines()
                .map(|line| serde_json::from_str(line).expect("JSON lines"))
                .collect();
            let [ready, summary] = &lines[..] else {
                panic!("{text}");
            };
            assert_eq!(ready["ready"], true);
            assert_eq!(ready["portals"].as_array().unwrap().len(), 5);
            assert_eq!(ready["username"], "demo");
            assert_eq!(summary["ok"], true);
            assert_eq!(summary["killed"].as_array().unwrap().len(), 2);
            assert_ne!(summary["owner_before"], summary["owner_after"]);
            assert!(summary["writes"].as_u64().unwrap() > 0);
            assert!(summary["resync_bytes"].as_u64().unwrap() > 0);
            assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
        }
    });
}

#[test]
fn a_taken_portal_port_is_a_clear_error() {
    alone(async |folder| {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut command = Command::new(EXECUTABLE);
        command
            .args([
                "demo",
                "--check",
                "--portal-base",
                &port.to_string(),
                "--dir",
            ])
            .arg(folder);
        let output = run(command).await;
        assert_eq!(output.status.code(), Some(1));
        let text = stderr(&output);
        assert!(text.contains(&format!("port {port} is taken")), "{text}");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
    });
}

#[test]
fn a_served_volume_can_be_used_until_the_demo_is_told_to_end() {
    alone(async |folder| {
        let mut demo = serve(folder).await;
        let ready = ready(&mut demo).await;
        let text = |name: &str| ready[name].as_str().unwrap().to_owned();
        let mut session = SessionOptions::new("iqn.2026-11.io.holdfast:test");
        session.chap = Some(Chap::new(text("username"), Secret::new(text("secret"))));
        let options = DiskOptions::new(portals(&ready), &text("iqn"), session);
        let disk = Disk::open(options.clone()).await.unwrap();
        let data = Bytes::from(vec![7; 8192]);
        disk.write(4096, data.clone()).await.unwrap();
        assert_eq!(disk.read(4096, 8192).await.unwrap(), data);
        disk.close().await.unwrap();

        // Nobody gets in with another secret.
        let mut wrong = options;
        wrong.session.chap = Some(Chap::new(text("username"), Secret::new("not-this-one-123")));
        assert!(matches!(
            Disk::open(wrong).await.err(),
            Some(Error::AuthenticationFailed)
        ));

        let pid = Pid::from_raw(demo.id().unwrap() as i32).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let status = timeout(PATIENCE, demo.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
    });
}

#[test]
fn no_node_outlives_a_killed_demo_and_the_next_one_sweeps_up() {
    alone(async |folder| {
        let mut demo = serve(folder).await;
        let ready = ready(&mut demo).await;
        demo.kill().await.unwrap();
        for portal in portals(&ready) {
            let gone = async {
                while TcpStream::connect(portal).await.is_ok() {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(PATIENCE, gone).await.expect("the node ends");
        }
        assert!(folder.join("node-1").exists());
        let mut again = serve(folder).await;
        self::ready(&mut again).await;
        again.kill().await.unwrap();
    });
}

/// A small demo that serves.
async fn serve(folder: &Path) -> Child {
    let mut command = tokio::process::Command::new(EXECUTABLE);
    command
        .args(["demo", "--serve", "-o", "json", "--nodes", "3"])
        .args(["--volume-size", "64MiB", "--dir"])
        .arg(folder)
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command.spawn().unwrap()
}

async fn ready(demo: &mut Child) -> serde_json::Value {
    let output = demo.stdout.take().unwrap();
    let mut lines = BufReader::new(output).lines();
    let line = timeout(PATIENCE, lines.next_line()).await.unwrap();
    let line = line.unwrap().expect("the demo gets ready");
    serde_json::from_str(&line).unwrap()
}

fn portals(ready: &serde_json::Value) -> Vec<SocketAddr> {
    let portals = ready["portals"].as_array().unwrap().iter();
    portals
        .map(|portal| portal.as_str().unwrap().parse().unwrap())
        .collect()
}
