//! The log of a node whose standard error is full, dead, stalled or flooded.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use harness::alone;
use harness::lone::{Lone, assert_io, until};
use holdfast_api::VolumeChange;
use rustix::process::Signal;

#[test]
fn a_log_that_cannot_be_written_costs_its_lines_and_not_the_node() {
    alone(async |folder| {
        // A device that is full for ever.
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut node = Lone::start(Lone::prepared(folder), |command| {
            command.stderr(full);
        });
        node.found().await;
        node.assert_serves().await;
        node.stop().await;
    });
}

#[test]
fn a_log_whose_reader_dies_costs_its_lines_and_not_the_node() {
    alone(async |folder| {
        let (reader, writer) = io::pipe().unwrap();
        let mut node = Lone::start(Lone::prepared(folder), |command| {
            command.stderr(writer);
        });
        node.found().await;
        node.assert_serves().await;
        drop(reader);
        node.assert_serves().await;
        node.stop().await;
    });
}

#[test]
fn a_node_without_standard_streams_is_a_node() {
    alone(async |folder| {
        let fleet = Lone::prepared(folder);
        let mut shell = tokio::process::Command::new("sh");
        // Standard input ends it in other tests.
        let command = fleet.command(0);
        let arguments = command.as_std().get_args();
        shell
            .args(["-c", "exec \"$0\" \"$@\" 0<&- 1>&- 2>&-"])
            .arg(command.as_std().get_program())
            .args(arguments.filter(|argument| *argument != "--end-with-stdin"));
        let mut node = Lone::start(fleet, |command| *command = shell);
        node.found().await;
        node.assert_serves().await;
        node.stop().await;
    });
}

#[test]
fn a_stalled_reader_of_the_log_stops_nothing_and_is_told_what_it_missed() {
    for blocking in [true, false] {
        alone(async |folder| {
            let (mut reader, writer) = io::pipe().unwrap();
            rustix::io::ioctl_fionbio(&writer, !blocking).unwrap();
            let mut node = Lone::start(Lone::prepared(folder), |command| {
                // The library that has to be named says 20 KiB of each change.
                command
                    .stderr(writer)
                    .env("HOLDFAST_LOG", "info,openraft=trace");
            });
            node.found().await;
            let disk = node.disk().await;
            // Pipe and queue hold little more than one MiB.
            for number in 0..100 {
                let change = VolumeChange {
                    redirect_to_owner: Some(number % 2 == 0),
                    ..VolumeChange::default()
                };
                let changed = node.fleet.client(0).change_volume("v", &change);
                changed.await.expect("a change");
            }
            assert_io(&disk).await;
            node.assert_serves().await;

            let text = Arc::new(Mutex::new(Vec::new()));
            let heard = text.clone();
            std::thread::spawn(move || {
                let mut part = [0; 1 << 16];
                while let Ok(bytes @ 1..) = reader.read(&mut part) {
                    heard.lock().unwrap().extend_from_slice(&part[..bytes]);
                }
            });
            until("the reader is told", || {
                let text = text.lock().unwrap();
                String::from_utf8_lossy(&text).contains("lines of the log are lost here")
            })
            .await;
            disk.close().await.unwrap();
            node.stop().await;
        });
    }
}

#[test]
fn strangers_cannot_fill_the_log() {
    alone(async |folder| {
        let log = folder.join("stderr");
        let mut node = Lone::start(Lone::prepared(folder), |command| {
            command.stderr(File::create(&log).unwrap());
        });
        node.found().await;
        node.assert_serves().await;
        let before = fs::read(&log).unwrap().len();
        let ports = node.fleet.ports(0);
        for _ in 0..50 {
            for port in [ports.portal, ports.link, ports.api] {
                drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
            }
            node.disk().await.close().await.unwrap();
        }
        node.assert_serves().await;
        node.signal(Signal::TERM);
        assert!(node.ended().await.success());
        let text = fs::read_to_string(&log).unwrap();
        let added = text.len() - before;
        assert!(added < 32 << 10, "{added} bytes:\n{text}");
        assert!(text.contains("more lines of this kind"), "{text}");
        // The burst, and one a minute on a machine that is slow.
        let logins = text.matches("logged in").count();
        assert!((20..30).contains(&logins), "{text}");
    });
}

#[test]
fn what_is_wrong_with_the_filter_is_said_and_the_node_starts() {
    alone(async |folder| {
        let log = folder.join("stderr");
        let stderr = Stdio::from(File::create(&log).unwrap());
        let mut node = Lone::start(Lone::prepared(folder), |command| {
            command.stderr(stderr).env("HOLDFAST_LOG", "info,=,x=loud");
        });
        node.found().await;
        node.stop().await;
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains("HOLDFAST_LOG"), "{text}");
        assert!(text.contains("started"), "{text}");
    });
}
