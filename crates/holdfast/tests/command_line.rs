//! The command line against a real cluster: forms of listings, exit codes, messages.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::process::Command;

use harness::{EXECUTABLE, alone, cluster, holdfast, run, stderr, stdout};

#[test]
fn administration_from_the_command_line() {
    alone(async |folder| {
        let fleet = cluster(folder, 3).await;

        let status = holdfast(&fleet, &["cluster", "status"]).await;
        assert!(status.status.success(), "{}", stderr(&status));
        assert!(stdout(&status).contains("3 of 3 up"));

        // Secrets are shown once, at creation.
        let created = holdfast(
            &fleet,
            &["volume", "create", "db", "--size", "1GiB", "-o", "json"],
        )
        .await;
        let created: serde_json::Value = serde_json::from_slice(&created.stdout).unwrap();
        let secret = created["credentials"]["secret"].as_str().unwrap();
        assert_eq!(secret.len(), 16);
        let target = created["volume"]["target"].as_str().unwrap().to_owned();
        assert_eq!(created["volume"]["state"], "open");
        for format in ["table", "json", "yaml", "csv"] {
            let shown = holdfast(&fleet, &["volume", "show", "db", "-o", format]).await;
            let text = stdout(&shown);
            assert!(text.contains(&target), "{format}: {text}");
            assert!(!text.contains(secret), "{format}: {text}");
            let listed = holdfast(&fleet, &["node", "list", "-o", format]).await;
            assert!(stdout(&listed).contains("up"), "{format}");
        }
        let nodes = holdfast(&fleet, &["node", "list", "-o", "csv"]).await;
        assert_eq!(stdout(&nodes).lines().count(), 4);
        let node = holdfast(&fleet, &["node", "show", "2", "-o", "json"]).await;
        let node: serde_json::Value = serde_json::from_slice(&node.stdout).unwrap();
        assert_eq!(
            (&node["state"], &node["told"]),
            (&"up".into(), &"known".into())
        );

        let again = holdfast(&fleet, &["volume", "create", "db", "--size", "1GiB"]).await;
        assert_eq!(again.status.code(), Some(1));
        assert!(stderr(&again).contains("exists already"));

        let unasked = holdfast(&fleet, &["volume", "delete", "db"]).await;
        assert_eq!(unasked.status.code(), Some(2), "nobody can be asked here");
        let deleted = holdfast(&fleet, &["volume", "delete", "db", "--yes"]).await;
        assert!(deleted.status.success(), "{}", stderr(&deleted));
        let listed = holdfast(&fleet, &["volume", "list", "-o", "json"]).await;
        assert_eq!(stdout(&listed).trim(), "[]");
    });
}

#[test]
fn unknown_names_and_impossible_sizes_are_told_apart_by_exit_code() {
    alone(async |folder| {
        let fleet = cluster(folder, 1).await;
        for (arguments, code, words) in [
            (
                &["volume", "show", "nothing"][..],
                4,
                "holdfast volume list",
            ),
            (&["volume", "delete", "nothing", "--yes"], 4, "nothing"),
            (&["node", "show", "99"], 4, "there is no node 99"),
            (
                &[
                    "volume", "create", "v", "--size", "1025TiB", "--copies", "1",
                ],
                2,
                "the largest volume has",
            ),
            (
                &["volume", "create", "v", "--size", "18EiB", "--copies", "1"],
                2,
                "a size is",
            ),
            (
                &["volume", "create", "V_", "--size", "1GiB", "--copies", "1"],
                2,
                "lower-case",
            ),
            (
                &["volume", "create", "v", "--size", "1GiB"],
                1,
                "3 copies need 3 nodes",
            ),
            (&["cluster", "init"], 1, "already belongs to a cluster"),
            (&["cluster", "token", "--expires", "31d"], 2, "30 days"),
        ] {
            let output = holdfast(&fleet, arguments).await;
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
            assert!(text.contains(words), "{arguments:?}: {text}");
        }
    });
}

#[test]
fn nobody_at_the_api_is_an_exit_code_of_its_own() {
    alone(async |_| {
        let mut command = Command::new(EXECUTABLE);
        command.args(["volume", "list", "--api", "http://127.0.0.1:9"]);
        let output = run(command).await;
        assert_eq!(output.status.code(), Some(3));
        assert!(stderr(&output).contains("HOLDFAST_API"));
        let mut command = Command::new(EXECUTABLE);
        command.args(["volume", "list", "--api", "not a URL"]);
        assert_eq!(run(command).await.status.code(), Some(2));
    });
}
