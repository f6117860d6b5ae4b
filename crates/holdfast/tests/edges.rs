//! What the machine around a node may do: fail in `accept`, have no idea of the time, send signals,
//! give few descriptors.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use harness::lone::{Lone, Shim, until};
use harness::{PATIENCE, alone, run, stderr, stdout};
use holdfast::fleet::{Fleet, FleetOptions};
use holdfast_api::ClusterPhase;
use rustix::process::Signal;

/// Every error that accept(2) names for pending network errors, for want of something and for
/// firewalls, and one that nobody has thought of.
const ACCEPT_ERRORS: [i32; 19] = [
    1,   // EPERM
    11,  // EAGAIN
    12,  // ENOMEM
    23,  // ENFILE
    24,  // EMFILE
    64,  // ENONET
    71,  // EPROTO
    75,  // EOVERFLOW
    92,  // ENOPROTOOPT
    95,  // EOPNOTSUPP
    100, // ENETDOWN
    101, // ENETUNREACH
    103, // ECONNABORTED
    104, // ECONNRESET
    105, // ENOBUFS
    110, // ETIMEDOUT
    112, // EHOSTDOWN
    113, // EHOSTUNREACH
    13,  // EACCES
];

#[test]
fn no_failed_accept_ends_a_listener() {
    alone(async |folder| {
        let shim = Shim::build(folder);
        let mut node = Lone::start(Lone::prepared(folder), |command| shim.preload(command));
        node.found().await;
        let ports = node.fleet.ports(0);
        for port in [ports.portal, ports.api, ports.link] {
            let switch = shim.switch(&format!("accept-{port}"));
            for error in ACCEPT_ERRORS {
                fs::write(&switch, error.to_string()).unwrap();
                // Each shows that the listener has lived through the one before.
                until("the listener accepts", || {
                    let _ = TcpStream::connect(("127.0.0.1", port));
                    !switch.exists()
                })
                .await;
            }
            node.assert_serves().await;
        }
        node.stop().await;
    });
}

#[test]
fn a_node_without_the_time_says_so_and_waits_for_it() {
    alone(async |folder| {
        let shim = Shim::build(folder);
        let mut node = Lone::start(Lone::prepared(folder), |command| shim.preload(command));
        node.found().await;
        node.stop().await;

        let clock = shim.switch("clock");
        File::create(&clock).unwrap();
        let log = folder.join("stderr");
        let stderr = File::create(&log).unwrap();
        let mut node = Lone::start(Lone::prepared(folder), |command| {
            shim.preload(command);
            command.stderr(stderr);
        });
        let why = node.reach(ClusterPhase::Starting).await;
        assert!(why.contains("clock is wrong"), "{why}");
        until("the log says it, too", || {
            let text = fs::read_to_string(&log).unwrap();
            text.contains("clock is wrong: it says 1970-01-02")
        })
        .await;
        fs::remove_file(&clock).unwrap();
        node.reach(ClusterPhase::Healthy).await;
        node.assert_serves().await;

        // A clock that goes wrong later is nobody's concern but that of what has an end.
        File::create(&clock).unwrap();
        node.assert_serves().await;
        node.signal(Signal::TERM);
        assert!(node.ended().await.success());
    });
}

#[test]
fn links_are_made_whatever_the_clock_says() {
    alone(async |folder| {
        let shim = Shim::build(folder);
        // Of the two nodes the first alone loses the time.
        let wrapper = folder.join("wrapper");
        let [library, switches] = [shim.library(), shim.switches()].map(Path::display);
        let executable = harness::EXECUTABLE;
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *node-1*) export SHIM={switches};; esac\n\
             LD_PRELOAD={library} exec {executable} \"$@\"\n"
        );
        fs::write(&wrapper, script).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        let options = FleetOptions {
            executable: wrapper,
            ..harness::options(folder, 2)
        };
        let mut fleet = Fleet::prepare(options).unwrap();
        fleet.found().await.unwrap();
        fleet.kill(&[1]).await.unwrap();
        File::create(shim.switch("clock")).unwrap();
        fleet.start(1, None).unwrap();
        fleet.wait_until_healthy(PATIENCE).await.unwrap();
    });
}

#[test]
fn a_node_that_waits_for_the_time_can_be_told_to_end() {
    alone(async |folder| {
        let shim = Shim::build(folder);
        File::create(shim.switch("clock")).unwrap();
        let mut node = Lone::start(Lone::prepared(folder), |command| shim.preload(command));
        node.reach(ClusterPhase::Starting).await;
        node.stop().await;
    });
}

#[test]
fn a_second_signal_ends_a_node_at_once_with_code_1() {
    alone(async |folder| {
        let log = folder.join("stderr");
        let mut node = Lone::start(Lone::prepared(folder), |command| {
            command.stderr(File::create(&log).unwrap());
        });
        node.found().await;
        // A session that does not log out keeps the node waiting for some seconds.
        let disk = node.disk().await;
        node.signal(Signal::TERM);
        let text = || fs::read_to_string(&log).unwrap();
        until("the first is heard", || {
            text().contains("handed over first")
        })
        .await;
        node.signal(Signal::INT);
        assert_eq!(node.ended().await.code(), Some(1));
        assert!(text().contains("a second signal"), "{}", text());
        drop(disk);
    });
}

#[test]
fn a_hangup_does_not_end_a_node_that_has_no_terminal() {
    alone(async |folder| {
        let log = folder.join("stderr");
        let fleet = Lone::prepared(folder);
        // The test may have been started at one.
        let mut apart = tokio::process::Command::new("setsid");
        let command = fleet.command(0);
        apart
            .arg(command.as_std().get_program())
            .args(command.as_std().get_args())
            .stderr(File::create(&log).unwrap())
            .kill_on_drop(true);
        let mut node = Lone::start(fleet, |command| *command = apart);
        node.found().await;
        node.signal(Signal::HUP);
        until("it is heard", || {
            fs::read_to_string(&log).unwrap().contains("SIGHUP")
        })
        .await;
        node.assert_serves().await;
        node.stop().await;
    });
}

#[test]
fn initiators_do_not_take_the_last_descriptors_of_a_node() {
    alone(async |folder| {
        let fleet = Lone::prepared(folder);
        let log = folder.join("stderr");
        let mut poor = tokio::process::Command::new("sh");
        let command = fleet.command(0);
        poor.args(["-c", "ulimit -n 200; exec \"$0\" \"$@\""])
            .arg(command.as_std().get_program())
            .args(command.as_std().get_args())
            .stderr(File::create(&log).unwrap())
            .kill_on_drop(true);
        let mut node = Lone::start(fleet, |command| *command = poor);
        node.found().await;
        node.assert_serves().await;
        let portal = node.fleet.portals()[0];
        let held: Vec<TcpStream> = (0..300)
            .map(|_| TcpStream::connect(portal).unwrap())
            .collect();
        for _ in 0..20 {
            node.fleet.client(0).volumes().await.expect("an answer");
        }
        drop(held);
        node.stop().await;
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains("the limit of open files"), "{text}");
        assert!(!text.contains("was not accepted"), "{text}");
    });
}

#[test]
fn a_data_directory_may_be_named_through_a_link_and_with_a_slash() {
    alone(async |folder| {
        let link = folder.join("link");
        symlink(folder.join("node-1"), &link).unwrap();
        for (name, new) in [
            (format!("{}/", link.display()), true),
            (format!("{}/node-1", folder.display()), false),
        ] {
            let fleet = Lone::prepared(folder);
            let mut command = renamed(&fleet, &name);
            let mut node = Lone::start(fleet, |given| {
                std::mem::swap(given, &mut command);
            });
            if new {
                node.found().await;
            } else {
                node.reach(ClusterPhase::Healthy).await;
            }
            node.assert_serves().await;
            let mut second = Command::new(harness::EXECUTABLE);
            second.args(["node", "start", "--listen", "127.0.0.1", "--data"]);
            let refused = run({
                second.arg(&link);
                second
            });
            let text = stderr(&refused.await);
            assert!(text.contains("in use"), "{text}");
            node.stop().await;
        }
    });
}

/// The command of a node whose directory has another name.
fn renamed(fleet: &Fleet, name: &str) -> tokio::process::Command {
    let command = fleet.command(0);
    let mut arguments: Vec<_> = command.as_std().get_args().collect();
    let at = arguments.iter().position(|one| *one == "--data").unwrap();
    arguments[at + 1] = name.as_ref();
    let mut renamed = tokio::process::Command::new(harness::EXECUTABLE);
    renamed.args(arguments).kill_on_drop(true);
    renamed
}

#[test]
fn an_api_may_be_named_without_a_scheme_and_a_variable_may_be_empty() {
    alone(async |folder| {
        let mut node = Lone::start(Lone::prepared(folder), |command| {
            command.env("HOLDFAST_JOIN", "");
        });
        node.found().await;
        let port = node.fleet.ports(0).api;
        let asked = async |api: &str| {
            let mut command = Command::new(harness::EXECUTABLE);
            command.args(["volume", "list", "-o", "csv"]);
            run({
                command.env("HOLDFAST_API", api);
                command
            })
            .await
        };
        for api in [format!("127.0.0.1:{port}"), format!("localhost:{port}")] {
            let output = asked(&api).await;
            assert!(output.status.success(), "{}", stderr(&output));
            assert!(stdout(&output).contains("iqn."), "{}", stdout(&output));
        }
        // The default address is asked, whether or not a node listens there.
        let output = asked("").await;
        assert_ne!(output.status.code(), Some(2), "{}", stderr(&output));
        node.stop().await;
    });
}
