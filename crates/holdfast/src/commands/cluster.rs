//! `holdfast cluster …`

use holdfast_api::{ClusterStatus, NewCluster, NewToken};

use super::{facts, with_client, word};
use crate::cli::{ClusterCommand, InitArgs, ListArgs, TokenArgs};
use crate::failure::Failure;
use crate::output::{About, Format, Rows, print, show as show_text};
use crate::standard::tell;

pub(crate) fn run(command: &ClusterCommand) -> Result<(), Failure> {
    match command {
        ClusterCommand::Init(args) => init(args),
        ClusterCommand::Token(args) => token(args),
        ClusterCommand::Status(args) => status(args),
        ClusterCommand::Rebalance(args) if args.copies => super::copies::rebalance(args),
        ClusterCommand::Rebalance(args) => super::balance::rebalance(args),
    }
}

fn init(args: &InitArgs) -> Result<(), Failure> {
    let wanted = NewCluster {
        name: args.name.clone(),
    };
    let status = with_client(&args.list.api, async |client| {
        Ok(client.found(&wanted).await?)
    })?;
    show(
        About::Change("the cluster exists"),
        args.list.output,
        &status,
    )?;
    if args.list.output == Format::Table {
        tell(
            "\nThe cluster exists. Next: `holdfast cluster token` for each further node \
             (five are the usual number), then `holdfast volume create`.",
        );
    }
    Ok(())
}

fn token(args: &TokenArgs) -> Result<(), Failure> {
    let wanted = NewToken {
        expires_s: args.expires.as_secs(),
    };
    let token = with_client(&args.list.api, async |client| {
        Ok(client.add_token(&wanted).await?)
    })?;
    let about = About::Secret {
        done: "a token was made",
        next: "Make another one; this one lapses by itself",
    };
    if args.list.output == Format::Table {
        // Alone on standard output, so that a script can take it as it is.
        show_text(about, &format!("{}\n", token.token))?;
        tell(&format!(
            "Good for one node, for {} seconds. On the new machine:\n  \
             HOLDFAST_JOIN=… holdfast node start --data DIR --listen IP",
            wanted.expires_s
        ));
        return Ok(());
    }
    let rows = Rows {
        columns: vec!["token", "expires_unix_ms"],
        rows: vec![vec![token.token.clone(), token.expires_unix_ms.to_string()]],
    };
    print(about, args.list.output, &token, rows)
}

fn status(args: &ListArgs) -> Result<(), Failure> {
    let status = with_client(&args.api, async |client| Ok(client.cluster().await?))?;
    show(About::Look, args.output, &status)
}

fn show(about: About<'_>, format: Format, status: &ClusterStatus) -> Result<(), Failure> {
    let number = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
    let rows = facts(vec![
        ("cluster", status.name.clone().unwrap_or_default()),
        ("id", status.id.clone().unwrap_or_default()),
        ("state", word(status.phase)),
        (
            "nodes",
            format!("{} of {} up", status.nodes_up, status.nodes),
        ),
        (
            "volumes",
            format!("{} of {} open", status.volumes_open, status.volumes),
        ),
        ("asked node", number(status.node)),
        ("leader", number(status.leader)),
        ("voters", join(&status.voters)),
        ("why", status.explanations.join("\n")),
    ]);
    print(about, format, status, rows)
}

fn join(numbers: &[u64]) -> String {
    let texts: Vec<String> = numbers.iter().map(u64::to_string).collect();
    texts.join(" ")
}
