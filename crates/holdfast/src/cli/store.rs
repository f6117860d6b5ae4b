//! `holdfast store …`: looking at a node's directory while no node runs on it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::output::Format;
use crate::quantity::parse_size;

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Read everything a stopped node has, and say what is wrong with it
    Check(CheckArgs),
    /// List the structures on a stopped node's disks
    Dump(DumpArgs),
    /// Save what a stopped node has of a volume to a raw image
    Export(ExportArgs),
    /// Move a stopped node's journal to another disk
    #[command(after_help = MOVE_JOURNAL_HELP)]
    MoveJournal(MoveArgs),
    /// Move a stopped node's home to another disk
    #[command(after_help = MOVE_HOME_HELP)]
    MoveHome(MoveArgs),
}

/// Which node's store.
#[derive(Clone, Debug, Args)]
pub(crate) struct StorePlace {
    /// The node's data directory
    #[arg(value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where the journal is, if it is not where the directory says [default: what it says]
    #[arg(long, value_name = "PATH")]
    pub(crate) journal: Option<PathBuf>,
    /// Where the home is, if it is not where the directory says [default: what it says]
    #[arg(long, value_name = "PATH")]
    pub(crate) home: Option<PathBuf>,
    /// Read at most so much each second, to leave the disk to others [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) rate: Option<u64>,
}

const CHECK_HELP: &str = "\
The node must be stopped; nothing in its directory is changed. Read are headers, durable facts,
every record in the journal, every page of the block map, every group and every block of the home;
counted anew is where the space went. It goes on behind damage, also where a node would refuse to
start. On a node that runs, scrubbing does the like.

Severities: `fatal` keeps the node from starting; `error` is data that this copy has lost and the
others have; `warning` is a spare or a count; `notice` is no fault.

Exit codes:
  0  nothing but notices
  1  something was found
  2  it could not be looked at: a node runs on it, or there is no store

Examples:
  holdfast store check /var/lib/holdfast
  holdfast store check /var/lib/holdfast --slice 3/12 --rate 50MiB
  holdfast store check /var/lib/holdfast -o json | jq '.findings[] | select(.severity==\"fatal\")'";

#[derive(Clone, Debug, Args)]
#[command(after_help = CHECK_HELP)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) place: StorePlace,
    /// Of the blocks check only those of this slice; its volume's number and its own
    #[arg(long, value_name = "VOLUME/SLICE", value_parser = parse_slice)]
    pub(crate) slice: Option<(u64, u32)>,
    /// Form of the findings
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

const DUMP_HELP: &str = "\
For whoever has to find out what happened. The node must be stopped; nothing is changed. Offsets are
bytes in the file of that name in the node's directory. What is damaged is left out; `store check`
tells of it.

Examples:
  holdfast store dump /var/lib/holdfast header
  holdfast store dump /var/lib/holdfast journal --volume 3 --slice 12
  holdfast store dump /var/lib/holdfast map --volume 3 --slice 12 --block 4711
  holdfast store dump /var/lib/holdfast manifest --limit 0 -o json";

#[derive(Clone, Debug, Args)]
#[command(after_help = DUMP_HELP)]
pub(crate) struct DumpArgs {
    #[command(flatten)]
    pub(crate) place: StorePlace,
    /// What to list
    #[arg(value_enum)]
    pub(crate) what: DumpWhat,
    /// Only of this volume, by its number
    #[arg(long, value_name = "NUMBER")]
    pub(crate) volume: Option<u64>,
    /// Only of slices with this number
    #[arg(long, value_name = "NUMBER")]
    pub(crate) slice: Option<u32>,
    /// Only what speaks of this block of 4 KiB within its slice
    #[arg(long, value_name = "NUMBER")]
    pub(crate) block: Option<u32>,
    /// Only this segment
    #[arg(long, value_name = "NUMBER")]
    pub(crate) segment: Option<u32>,
    /// At most so many rows; 0 for all
    #[arg(long, value_name = "ROWS", default_value_t = 1000)]
    pub(crate) limit: usize,
    /// Form of the listing
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DumpWhat {
    /// Header pages of the journal, copies of the facts, superblocks of the home
    Header,
    /// Every record, copied block and stable point in the journal
    Journal,
    /// Where every block is, by the block map
    Map,
    /// What every segment of the home is filled with
    Segments,
    /// Promises, copies, voids and removals
    Facts,
    /// Every intact entry of the manifest, and the parts of the map that it names
    Manifest,
}

const EXPORT_HELP: &str = "\
For when a cluster cannot serve a volume any more: it reads what one stopped node has, also where
damage keeps that node from starting, and changes nothing in its directory. FILE becomes a sparse
raw image, as dd or qemu-nbd take it; FILE.map says what of it is worth what, in the form of GNU
ddrescue:

  +  sound: what the node would have answered
  /  doubtful: the best there is, perhaps not the newest (see the table that is printed)
  -  unreadable
  ?  this node has no copy of it

Run it again with another node's directory and the same FILE: only what is worth less than what that
node has is replaced. Begin with the node whose copies have the highest LAST RECORD; a copy that
was taken out of the in-sync set and does not know it looks sound and is older. The image holds
every journaled write, so also ones that were never acknowledged, as after a power cut.

Exit codes:
  0  every byte of the image is sound
  1  some are not; FILE.map says which
  2  nothing could be exported

Examples:
  holdfast store export /var/lib/holdfast db db.img
  holdfast store export /srv/node-2/holdfast 3 db.img --size 100GiB";

#[derive(Clone, Debug, Args)]
#[command(after_help = EXPORT_HELP)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) place: StorePlace,
    /// The volume: its name, or its number where no name can be found out
    pub(crate) volume: String,
    /// The image to write, outside the node's directory
    pub(crate) file: PathBuf,
    /// Size of the volume [default: what the node knows of it, else all slices it has]
    #[arg(long, value_parser = parse_size)]
    pub(crate) size: Option<u64>,
    /// Form of the summary
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

const MOVE_JOURNAL_HELP: &str = "\
The node must be stopped. The journal is copied, made durable and compared; then the directory is
told where it is, in one step; then the old one is made unusable. Interrupted at any moment, the
node starts with one of the two, and running the command again finishes it. Moving it back: give
DIR/journal as PATH.

PATH is a file, made if absent, or a block device. What it holds already is not overwritten without
--force. It must be as large as the journal is now.

Examples:
  holdfast store move-journal /var/lib/holdfast /srv/nvram/holdfast-journal
  holdfast store move-journal /var/lib/holdfast /dev/disk/by-id/nvme-eui.0025385b21404321-part1";

const MOVE_HOME_HELP: &str = "\
The node must be stopped, and the other copies of what it holds count meanwhile. The home is copied,
made durable and compared; then the directory is told where it is, in one step; then the old one is
made unusable. Interrupted at any moment, the node starts with one of the two, and running the
command again finishes it, from the beginning. Moving it back: give DIR/home as PATH.

PATH is a file, made if absent, or a block device. What it holds already is not overwritten without
--force. It must be as large as the home is now; a larger device is used by starting the node with
a larger --home-size.

Examples:
  holdfast store move-home /var/lib/holdfast /dev/disk/by-id/ata-WDC_WD80EFZX_VK0ABCDE
  holdfast store move-home /var/lib/holdfast /srv/large/holdfast-home";

/// What shall be moved where.
#[derive(Clone, Debug, Args)]
pub(crate) struct MoveArgs {
    /// The node's data directory
    #[arg(value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where it shall be
    #[arg(value_name = "PATH")]
    pub(crate) to: PathBuf,
    /// Overwrite what PATH holds
    #[arg(long)]
    pub(crate) force: bool,
}

fn parse_slice(text: &str) -> Result<(u64, u32), String> {
    let parsed = text.split_once('/').and_then(|(volume, slice)| {
        let volume = volume.parse().ok()?;
        Some((volume, slice.parse().ok()?))
    });
    parsed.ok_or_else(|| "a slice is its volume's number, `/` and its own, such as 3/12".into())
}
