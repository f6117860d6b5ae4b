//! `holdfast store …`: a node's directory while no node runs on it.

mod check;
mod cluster;
mod dump;
mod export;
mod image_map;
mod move_area;

use std::path::Path;
use std::rc::Rc;

use holdfast_runtime::host::{ReadOnlyDirectory, run as run_shard};
use holdfast_runtime::{DiskError, Runtime};
use holdfast_store::inspect::{InspectOptions, Inspection};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::{StoreCommand, StorePlace};
use crate::failure::Failure;
use crate::node::{Area, Known, look};
use crate::standard::tell;

pub(crate) fn run(command: StoreCommand) -> Result<(), Failure> {
    run_shard(async |runtime| match command {
        StoreCommand::Check(args) => check::run(runtime, &args).await,
        StoreCommand::Dump(args) => dump::run(runtime, &args).await,
        StoreCommand::Export(args) => export::run(runtime, &args).await,
        StoreCommand::MoveJournal(args) => move_area::run(Area::Journal, &args).await,
        StoreCommand::MoveHome(args) => move_area::run(Area::Home, &args).await,
    })
}

/// A store to look at, and what the directory says of its node.
struct Looked {
    inspection: Inspection,
    directory: Rc<ReadOnlyDirectory>,
    known: Option<Known>,
}

impl Looked {
    async fn open(runtime: Runtime, place: &StorePlace) -> Result<Self, Failure> {
        let path = &place.data;
        let mut directory = ReadOnlyDirectory::open(path).map_err(|error| in_use(path, &error))?;
        let known = match look(path) {
            Ok(known) => known,
            Err(error) => {
                tell(&format!("warning: {error}\nIt is looked at all the same."));
                None
            }
        };
        for (area, given) in [(Area::Journal, &place.journal), (Area::Home, &place.home)] {
            let elsewhere = known.as_ref().and_then(|known| known.place(area));
            if let Some(path) = given.as_deref().or(elsewhere) {
                directory = directory.with_area_at(area.name(), path);
            }
            if let Some(known) = &known {
                directory = directory.with_size_at_most(area.name(), known.bytes(area));
            }
        }
        let directory = Rc::new(directory);
        let options = InspectOptions {
            identity: known.as_ref().map(|known| known.uuid),
            bytes_per_second: place.rate,
        };
        let inspection = Inspection::open(runtime, directory.clone(), options)
            .await
            .map_err(|error| {
                Failure::Usage(format!(
                    "there is no store to look at in {}: {error}",
                    path.display()
                ))
            })?;
        Ok(Self {
            inspection,
            directory,
            known,
        })
    }
}

/// Why a directory cannot be looked at.
fn in_use(path: &Path, error: &DiskError) -> Failure {
    Failure::Usage(match error {
        DiskError::InUse { .. } => format!(
            "a node runs on {}. Stop it first, and wait until its process has ended",
            path.display()
        ),
        DiskError::Io { .. } | DiskError::Full { .. } => {
            format!("{} cannot be looked at: {error}", path.display())
        }
    })
}

/// How far something is, for people at a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:12} {bar:40} {pos}/{len} {eta}");
    let bar = ProgressBar::new(0);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
