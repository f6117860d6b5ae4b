//! `holdfast store check`

use holdfast_runtime::Runtime;
use holdfast_store::inspect::{CheckReport, Finding, Severity};
use holdfast_wire::SliceKey;

use super::{Looked, progress_bar};
use crate::cli::CheckArgs;
use crate::commands::{facts, word};
use crate::failure::Failure;
use crate::output::{About, Format, Rows, print, show, table};
use crate::quantity::show_size;

pub(super) async fn run(runtime: Runtime, args: &CheckArgs) -> Result<(), Failure> {
    let looked = Looked::open(runtime, &args.place).await?;
    let only = args.slice.map(|(volume, slice)| SliceKey { volume, slice });
    let bar = progress_bar();
    let report = looked
        .inspection
        .check(only, &|progress| {
            bar.set_message(progress.phase);
            bar.set_length(progress.all);
            bar.set_position(progress.done);
        })
        .await;
    bar.finish_and_clear();
    print(About::Look, args.output, &report, rows(&report))?;
    if args.output == Format::Table {
        summarise(&report)?;
    }
    if report.is_clean() {
        return Ok(());
    }
    Err(Failure::Failed(verdict(&report)))
}

fn rows(report: &CheckReport) -> Rows {
    let row = |finding: &Finding| {
        vec![
            word(finding.severity),
            word(finding.kind),
            finding.area.to_owned(),
            finding.offset.map_or_else(String::new, |at| at.to_string()),
            finding.slice.map_or_else(String::new, |slice| {
                format!("{}/{}", slice.volume, slice.slice)
            }),
            finding
                .block
                .map_or_else(String::new, |block| block.to_string()),
            finding.what.clone(),
            finding.effect.to_owned(),
        ]
    };
    Rows {
        columns: vec![
            "severity", "kind", "file", "offset", "slice", "block", "found", "effect",
        ],
        rows: report.findings.iter().map(row).collect(),
    }
}

/// What was read, below the findings.
fn summarise(report: &CheckReport) -> Result<(), Failure> {
    let mut lines = vec![("read", show_size(report.read_bytes))];
    match &report.journal {
        Some(journal) => {
            let records: u64 = journal.slices.iter().map(|slice| slice.records).sum();
            let range = match (journal.first_lsn, journal.last_lsn) {
                (Some(first), Some(last)) => format!(" ({first} to {last})"),
                (None, _) | (_, None) => String::new(),
            };
            let end = match journal.torn_head {
                true => ", a torn head",
                false => "",
            };
            lines.push((
                "journal",
                format!(
                    "{} batches{range} with {records} records, {} of {}, {} holes{end}",
                    journal.batches,
                    show_size(journal.used_bytes),
                    show_size(journal.ring_bytes),
                    journal.holes
                ),
            ));
        }
        None => lines.push(("journal", "nothing of it can be read".into())),
    }
    lines.push(("blocks verified", report.blocks_verified.to_string()));
    if let Some(space) = &report.space {
        let parts = [
            ("home", space.area_bytes),
            ("- blocks in use", space.data_bytes),
            ("- reclaimable", space.reclaimable_bytes),
            ("- block map", space.map_bytes + space.map_reclaimable_bytes),
            ("- free", space.free_bytes),
            ("- manifest", space.manifest_bytes + space.rest_bytes),
        ];
        lines.extend(parts.map(|(name, bytes)| (name, show_size(bytes))));
    }
    show(About::Look, &format!("\n{}\n", table(&facts(lines))))
}

/// How many findings of each severity there are.
fn verdict(report: &CheckReport) -> String {
    let count = |severity: Severity| -> u64 {
        let counts = report.counts.iter();
        let those = counts.filter(|(kind, _)| kind.severity() == severity);
        those.map(|(_, count)| count).sum()
    };
    let (fatal, errors) = (count(Severity::Fatal), count(Severity::Error));
    let warnings = count(Severity::Warning);
    let next = match (fatal, errors) {
        (1.., _) => "a node does not start on this",
        (0, 1..) => "a node starts on this and heals it from other copies",
        (0, 0) => "a node starts on this",
    };
    format!("found: {fatal} fatal, {errors} errors, {warnings} warnings; {next}")
}
