//! `holdfast volume move`

#![allow(
    clippy::disallowed_methods,
    reason = "a command that waits on a person's machine, by its clock"
)]

use std::time::Instant;

use holdfast_api::{Client, NewOwner, VolumeState, VolumeStatus};

use super::{facts, with_client, word};
use crate::cli::MoveVolumeArgs;
use crate::failure::Failure;
use crate::output::{About, print};
use crate::standard::tell;

/// Moves a volume and waits until its new owner serves, saying on standard error what it waits
/// for.
pub(super) fn move_volume(args: &MoveVolumeArgs) -> Result<(), Failure> {
    let (before, volume) = with_client(&args.list.api, async |client| {
        let before = client.volume(&args.name).await?;
        let volume = wait_for(&client, args, &before).await?;
        Ok((before, volume))
    })?;
    let from = match before.owner {
        Some(owner) if owner == args.to => "there already".into(),
        Some(owner) => format!("node {owner}"),
        None => "none".into(),
    };
    let takeover = volume
        .owner_report
        .as_ref()
        .and_then(|report| report.takeover_ms);
    let lines = vec![
        ("volume", volume.name.clone()),
        ("owner", format!("node {}", args.to)),
        ("owner before", from),
        ("state", word(volume.state)),
        (
            "takeover",
            takeover.map_or_else(String::new, |ms| format!("{ms} ms")),
        ),
    ];
    let done = format!("node {} owns volume {}", args.to, volume.name);
    print(
        About::Change(&done),
        args.list.output,
        &volume,
        facts(lines),
    )
}

async fn wait_for(
    client: &Client,
    args: &MoveVolumeArgs,
    before: &VolumeStatus,
) -> Result<VolumeStatus, Failure> {
    let wanted = NewOwner {
        node: args.to,
        view: Some(before.view),
        balance: false,
    };
    let begun = Instant::now();
    loop {
        // The node waits, not this loop; asked again it waits on.
        let volume = client.move_volume(&args.name, &wanted).await?;
        if volume.owner != Some(args.to) {
            let owner = volume
                .owner
                .map_or_else(|| "no node".into(), |owner| format!("node {owner}"));
            return Err(Failure::Failed(format!(
                "node {} was made the owner and is so no more: now it is {owner}.\n\
                 It may have failed, or somebody else has moved the volume",
                args.to
            )));
        }
        if volume.state == VolumeState::Open {
            return Ok(volume);
        }
        let why = &volume.explanation;
        if begun.elapsed() >= args.wait {
            return Err(Failure::Undecided(format!(
                "node {} is the owner and does not serve yet: {why}.\n\
                 It goes on by itself: `holdfast volume show {}` shows what it waits for",
                args.to, args.name
            )));
        }
        tell(&format!("node {} takes {} over: {why}", args.to, args.name));
    }
}
