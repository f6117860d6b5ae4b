//! `holdfast volume …`

use holdfast_api::{
    Authentication, ChapCredentials, CreatedVolume, NewSecret, NewVolume, OwnerReport, SliceStatus,
    VolumeChange, VolumeStatus, WhichSlices, WhichVolumes,
};

use super::{confirm, facts, list_pages, with_client, word};
use crate::cli::{
    AccessArgs, CreateVolumeArgs, DeleteVolumeArgs, ListSlicesArgs, ListVolumesArgs, RedirectArgs,
    RedirectTo, ResizeVolumeArgs, RevokeSecretsArgs, RotateSecretArgs, ShowVolumeArgs,
    VolumeCommand,
};
use crate::failure::Failure;
use crate::output::{About, Format, Listing, print};
use crate::quantity::{NewSize, show_size};
use crate::standard::tell;

pub(crate) fn run(command: &VolumeCommand) -> Result<(), Failure> {
    match command {
        VolumeCommand::Create(args) => create(args),
        VolumeCommand::List(args) => list(args),
        VolumeCommand::Slices(args) => slices(args),
        VolumeCommand::Show(args) => show(args),
        VolumeCommand::Resize(args) => resize(args),
        VolumeCommand::Access(args) => access(args),
        VolumeCommand::RotateSecret(args) => rotate_secret(args),
        VolumeCommand::RevokeSecrets(args) => revoke_secrets(args),
        VolumeCommand::Redirect(args) => redirect(args),
        VolumeCommand::Move(args) => super::moving::move_volume(args),
        VolumeCommand::Delete(args) => delete(args),
    }
}

fn create(args: &CreateVolumeArgs) -> Result<(), Failure> {
    let wanted = NewVolume {
        name: args.name.clone(),
        size_bytes: args.size,
        copies: args.copies,
        block_size: args.block_size,
        authentication: if args.no_chap {
            Authentication::None
        } else if args.mutual_chap {
            Authentication::MutualChap
        } else {
            Authentication::Chap
        },
        initiators: args.allow.clone(),
        redirect_to_owner: args.redirect_to_owner,
    };
    let created = with_client(&args.list.api, async |client| {
        Ok(client.create_volume(&wanted).await?)
    })?;
    let CreatedVolume {
        volume,
        credentials,
    } = &created;
    let mut lines = vec![
        ("volume", volume.name.clone()),
        ("size", show_size(volume.size_bytes)),
        ("state", word(volume.state)),
        ("target", volume.target.clone()),
        ("portals", volume.portals.join("\n")),
    ];
    if let Some(chap) = credentials {
        lines.extend(secrets(chap));
    }
    let has_secrets = credentials.is_some();
    let done = format!("volume {} was made", volume.name);
    let next = format!(
        "`holdfast volume rotate-secret {} --grace 0` makes a new secret",
        volume.name
    );
    let about = match has_secrets {
        true => About::Secret {
            done: &done,
            next: &next,
        },
        false => About::Change(&done),
    };
    print(about, args.list.output, &created, facts(lines))?;
    if has_secrets && args.list.output == Format::Table {
        tell("\nNote the secrets down: they are not shown again.");
    }
    Ok(())
}

fn list(args: &ListVolumesArgs) -> Result<(), Failure> {
    let columns = vec![
        "name",
        "state",
        "size",
        "copies",
        "owner",
        "target",
        "explanation",
    ];
    let row = |volume: &VolumeStatus| {
        vec![
            volume.name.clone(),
            word(volume.state),
            show_size(volume.size_bytes),
            copies(volume),
            owner(volume),
            volume.target.clone(),
            volume.explanation.clone(),
        ]
    };
    let listing = Listing::new(args.list.output, columns);
    with_client(&args.list.api, async |client| {
        let fetch = async |limit, cursor| {
            let which = WhichVolumes {
                limit: Some(limit),
                cursor,
                ..args.which()
            };
            let page = client.volume_page(&which).await?;
            Ok((page.volumes, page.next_cursor))
        };
        list_pages(listing, args.limit, fetch, row).await
    })
}

fn slices(args: &ListSlicesArgs) -> Result<(), Failure> {
    let row = |slice: &SliceStatus| {
        let nodes = |in_sync| {
            let copies = slice.copies.iter().filter(|copy| copy.in_sync == in_sync);
            let nodes: Vec<String> = copies.map(|copy| copy.node.to_string()).collect();
            nodes.join(" ")
        };
        vec![slice.slice.to_string(), nodes(true), nodes(false)]
    };
    let listing = Listing::new(args.list.output, vec!["slice", "in_sync", "stale"]);
    with_client(&args.list.api, async |client| {
        let fetch = async |limit, cursor| {
            let limit = Some(limit);
            let which = WhichSlices { limit, cursor };
            let page = client.slice_page(&args.name, &which).await?;
            Ok((page.slices, page.next_cursor))
        };
        list_pages(listing, args.limit, fetch, row).await
    })
}

fn show(args: &ShowVolumeArgs) -> Result<(), Failure> {
    let volume = with_client(&args.list.api, async |client| {
        Ok(client.volume(&args.name).await?)
    })?;
    let rows = facts(vec![
        ("volume", volume.name.clone()),
        ("state", word(volume.state)),
        ("why", volume.explanation.clone()),
        ("size", show_size(volume.size_bytes)),
        (
            "grows to",
            volume.growing_to_bytes.map_or_else(String::new, show_size),
        ),
        ("block size", volume.block_size.to_string()),
        ("copies", copies(&volume)),
        ("held by", holders(&volume)),
        ("owner", owner(&volume)),
        (
            "owner since",
            owner_report(&volume, |report| seconds(report.age_ms)),
        ),
        (
            "takeover",
            owner_report(&volume, |report| {
                report.takeover_ms.map_or_else(String::new, seconds)
            }),
        ),
        (
            "waits for",
            owner_report(&volume, |report| report.waits_for.clone()),
        ),
        (
            "oldest I/O",
            volume.oldest_io_ms.map_or_else(String::new, seconds),
        ),
        ("brought back", owner_report(&volume, resyncs)),
        ("target", volume.target.clone()),
        ("LUN", volume.lun.to_string()),
        ("portals", volume.portals.join("\n")),
        ("NAA", volume.naa.clone()),
        ("log-in", word(volume.authentication)),
        ("old secret", old_secret(volume.old_secret_until_unix_ms)),
        ("initiators", initiators(&volume)),
        ("redirect", redirection(&volume)),
    ]);
    print(About::Look, args.list.output, &volume, rows)
}

fn resize(args: &ResizeVolumeArgs) -> Result<(), Failure> {
    let (before, volume) = with_client(&args.list.api, async |client| {
        let before = client.volume(&args.name).await?.size_bytes;
        // "10 GiB more" means more than what was shown: said twice by two people, or again after
        // an answer got lost, it must not count twice.
        let (size_bytes, expected) = match args.size {
            NewSize::To(size) => (size, None),
            NewSize::By(more) => (before.saturating_add(more), Some(before)),
        };
        let wanted = VolumeChange {
            size_bytes: Some(size_bytes),
            expected_size_bytes: expected,
            ..VolumeChange::default()
        };
        let volume = client.change_volume(&args.name, &wanted).await?;
        Ok((before, volume))
    })?;
    let mut lines = vec![
        ("volume", volume.name.clone()),
        ("size", show_size(volume.size_bytes)),
        ("size before", show_size(before)),
    ];
    if let Some(size) = volume.growing_to_bytes {
        lines.push(("grows to", show_size(size)));
        lines.push(("why", volume.explanation.clone()));
    }
    let done = format!("volume {} has its new size, or grows to it", volume.name);
    print(
        About::Change(&done),
        args.list.output,
        &volume,
        facts(lines),
    )
}

fn access(args: &AccessArgs) -> Result<(), Failure> {
    let wanted = VolumeChange {
        allow_anyone: args.anyone,
        allow_initiators: args.allow.clone(),
        deny_initiators: args.deny.clone(),
        ..VolumeChange::default()
    };
    let volume = with_client(&args.list.api, async |client| {
        if wanted == VolumeChange::default() {
            return Ok(client.volume(&args.name).await?);
        }
        Ok(client.change_volume(&args.name, &wanted).await?)
    })?;
    let rows = facts(vec![
        ("volume", volume.name.clone()),
        ("initiators", initiators(&volume)),
    ]);
    let about = match wanted == VolumeChange::default() {
        true => About::Look,
        false => About::Change("the access list was changed"),
    };
    print(about, args.list.output, &volume, rows)
}

fn initiators(volume: &VolumeStatus) -> String {
    match &volume.initiators {
        None => "every one with the credentials".into(),
        Some(none) if none.is_empty() => "none: nobody may log in".into(),
        Some(some) => some.join("\n"),
    }
}

fn rotate_secret(args: &RotateSecretArgs) -> Result<(), Failure> {
    let wanted = NewSecret {
        grace_s: args.grace.as_secs(),
        revoke: args.revoke,
    };
    let rotated = with_client(&args.list.api, async |client| {
        Ok(client.rotate_secret(&args.name, &wanted).await?)
    })?;
    let mut lines = vec![("volume", args.name.clone())];
    lines.extend(secrets(&rotated.credentials));
    let old = if args.revoke {
        "void; its sessions end".to_owned()
    } else if rotated.old_until_unix_ms.is_none() {
        "void; its sessions go on".to_owned()
    } else {
        old_secret(rotated.old_until_unix_ms)
    };
    lines.push(("old secret", old));
    let about = About::Secret {
        done: &format!("volume {} has a new secret", args.name),
        next: &format!(
            "`holdfast volume rotate-secret {}` makes another one",
            args.name
        ),
    };
    print(about, args.list.output, &rotated, facts(lines))
}

fn revoke_secrets(args: &RevokeSecretsArgs) -> Result<(), Failure> {
    let wanted = VolumeChange {
        revoke_old_secrets: true,
        ..VolumeChange::default()
    };
    let volume = with_client(&args.list.api, async |client| {
        Ok(client.change_volume(&args.name, &wanted).await?)
    })?;
    let rows = facts(vec![
        ("volume", volume.name.clone()),
        ("old secrets", "void; their sessions end".into()),
    ]);
    let about = About::Change("the old secrets are void");
    print(about, args.list.output, &volume, rows)
}

fn redirect(args: &RedirectArgs) -> Result<(), Failure> {
    let wanted = VolumeChange {
        redirect_to_owner: Some(args.to == RedirectTo::Owner),
        ..VolumeChange::default()
    };
    let volume = with_client(&args.list.api, async |client| {
        Ok(client.change_volume(&args.name, &wanted).await?)
    })?;
    let rows = facts(vec![
        ("volume", volume.name.clone()),
        ("redirect", redirection(&volume)),
    ]);
    let about = About::Change("logins are sent as was said");
    print(about, args.list.output, &volume, rows)
}

fn redirection(volume: &VolumeStatus) -> String {
    let text = if volume.redirect_to_owner {
        "to the owner"
    } else {
        "none: served where they log in"
    };
    text.into()
}

/// How much longer a secret that was replaced can be used.
#[allow(
    clippy::disallowed_methods,
    reason = "for display, on the machine of whoever asks"
)]
fn old_secret(until_unix_ms: Option<u64>) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_ms = now.map_or(0, |since| since.as_millis() as u64);
    let left_s = until_unix_ms.map(|until| until.saturating_sub(now_ms).div_ceil(1000));
    match left_s {
        None => String::new(),
        Some(s) if s >= 2 * 3600 => format!("good for logins for {} h", s / 3600),
        Some(s) if s >= 120 => format!("good for logins for {} min", s / 60),
        Some(s) => format!("good for logins for {s} s"),
    }
}

fn secrets(chap: &ChapCredentials) -> [(&'static str, String); 4] {
    let own = |part: &Option<String>| part.clone().unwrap_or_default();
    [
        ("CHAP user", chap.username.clone()),
        ("CHAP secret", chap.secret.clone()),
        ("target user", own(&chap.target_username)),
        ("target secret", own(&chap.target_secret)),
    ]
}

fn delete(args: &DeleteVolumeArgs) -> Result<(), Failure> {
    if !args.yes {
        let what = "deleting a volume destroys its data";
        let question = format!(
            "This destroys all data of {}. Type its name to go on: ",
            args.name
        );
        confirm(what, &question, &args.name)?;
    }
    with_client(&args.api, async |client| {
        Ok(client.delete_volume(&args.name).await?)
    })?;
    tell(&format!("volume {} and its data are deleted", args.name));
    Ok(())
}

fn copies(volume: &VolumeStatus) -> String {
    let redundancy = &volume.redundancy;
    if redundancy.full == redundancy.slices {
        format!("{} of {}", volume.copies, volume.copies)
    } else {
        format!("at least {} of {}", redundancy.copies_least, volume.copies)
    }
}

fn holders(volume: &VolumeStatus) -> String {
    let lines = volume.holders.iter().map(|holder| {
        format!(
            "node {}: {} of {} slices in sync",
            holder.node, holder.in_sync, holder.slices
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn owner(volume: &VolumeStatus) -> String {
    volume
        .owner
        .map_or_else(|| "none".into(), |owner| format!("node {owner}"))
}

fn owner_report(volume: &VolumeStatus, part: impl Fn(&OwnerReport) -> String) -> String {
    match (&volume.owner_report, volume.owner) {
        (Some(report), _) => part(report),
        (None, Some(_)) => "unknown".into(),
        (None, None) => String::new(),
    }
}

fn resyncs(report: &OwnerReport) -> String {
    let lines = report.resyncs.iter().map(|resync| {
        let state = if resync.finished {
            "in sync"
        } else {
            "under way"
        };
        format!(
            "slice {} on node {}: {state}, {} copied",
            resync.slice,
            resync.node,
            show_size(resync.copied_bytes)
        )
    });
    let mut lines: Vec<String> = lines.collect();
    let all = report.resyncs_under_way + report.resyncs_finished;
    let more = all.saturating_sub(report.resyncs.len() as u64);
    if more > 0 {
        lines.push(format!(
            "and {more} more; {} are under way, {} were copied in all",
            report.resyncs_under_way,
            show_size(report.resynced_bytes)
        ));
    }
    lines.join("\n")
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{:03} s", milliseconds / 1000, milliseconds % 1000)
}
