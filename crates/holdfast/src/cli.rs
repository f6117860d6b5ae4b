//! The command line.

mod draining;
mod listing;
mod store;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

pub(crate) use self::draining::*;
pub(crate) use self::listing::*;
pub(crate) use self::store::*;
use crate::failure::EXIT_CODES;
use crate::output::Format;
use crate::quantity::{
    NewSize, parse_duration, parse_grace, parse_new_size, parse_size, parse_switch,
};

/// Port on which nodes reach each other, where none is given.
pub(crate) const LINK_PORT: u16 = 7400;
/// The port that is registered for iSCSI.
pub(crate) const PORTAL_PORT: u16 = 3260;

const TOP_EXAMPLES: &str = "\
Examples:
  See it work, on this machine alone:
    holdfast demo
  Start the first node and found a cluster:
    holdfast node start --data /var/lib/holdfast --listen 10.0.0.11
    holdfast cluster init
  Let another machine join:
    holdfast cluster token
    HOLDFAST_JOIN=holdfast1.… holdfast node start --data /var/lib/holdfast --listen 10.0.0.12
  Make a volume and look at it:
    holdfast volume create db --size 100GiB
    holdfast volume show db";

/// A fault-tolerant IP SAN: volumes that survive any two failures, over iSCSI.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    after_help = [TOP_EXAMPLES, "\n\n", EXIT_CODES].concat()
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a node, look at nodes
    #[command(subcommand)]
    Node(NodeCommand),
    /// Found a cluster, let nodes join, see how it is
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Make, show and delete volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Look at the data of a node that does not run: check, list, save
    #[command(subcommand)]
    Store(StoreCommand),
    /// Five nodes on this machine, two of them killed under load, every write verified
    Demo(DemoArgs),
    /// Run the code under simulated faults
    #[command(subcommand)]
    Sim(SimCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Run one node in the foreground until SIGTERM or SIGINT
    Start(StartArgs),
    /// List the nodes of the cluster
    List(ListNodesArgs),
    /// Show one node and what it waits for
    Show(ShowNodeArgs),
    /// Read back everything a node's disk holds, and heal what it has lost
    Scrub(ScrubArgs),
    /// Move everything off a node so that it can be removed, while it serves
    Drain(DrainArgs),
    /// Take a drained node out for good
    Remove(RemoveArgs),
    /// Take a node out that will not come back; other nodes get its copies
    Evict(EvictArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Found a new cluster with the node at --api as its first
    Init(InitArgs),
    /// Make a token with which one node can join
    Token(TokenArgs),
    /// How the cluster is, what it waits for, what to do next
    Status(ListArgs),
    /// Move volumes to other owners so that nodes bear alike, or copies so that they hold alike
    Rebalance(RebalanceArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Make a volume; shows its credentials, this once
    Create(CreateVolumeArgs),
    /// List the volumes: all, or those that are wanted
    List(ListVolumesArgs),
    /// Show one volume and what it waits for
    Show(ShowVolumeArgs),
    /// List a volume's slices and where their copies are
    Slices(ListSlicesArgs),
    /// Make a volume larger while it is used
    Resize(ResizeVolumeArgs),
    /// Say which initiators may log in
    Access(AccessArgs),
    /// Give a volume a new CHAP secret; shows it, this once
    RotateSecret(RotateSecretArgs),
    /// Void the secrets that were replaced, and end the sessions that used one
    RevokeSecrets(RevokeSecretsArgs),
    /// Say where initiators are served
    Redirect(RedirectArgs),
    /// Make another node the owner while the volume is used
    Move(MoveVolumeArgs),
    /// Delete a volume and all its data
    Delete(DeleteVolumeArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum SimCommand {
    /// Run seeds and report
    Run(holdfast_sim::RunArgs),
}

const START_EXAMPLES: &str = "\
The data directory remembers who the node is: start it again with the same directory and it is
the same node. SIGTERM and SIGINT hand its volumes over before it ends, with exit code 0; a second
one ends it at once, with 1.

The REST API has no log-in yet, so it serves this machine only (127.0.0.1) unless you say
otherwise with --api-listen and --api-insecure.

Examples:
  holdfast node start --data /var/lib/holdfast --listen 10.0.0.11
  holdfast node start --data /var/lib/holdfast --listen 10.0.0.11 \\
    --journal /dev/disk/by-id/nvme-…-part3 --home /dev/disk/by-id/ata-…
  HOLDFAST_JOIN=holdfast1.… holdfast node start --data /var/lib/holdfast --listen 10.0.0.12";

#[derive(Clone, Debug, Args)]
#[command(after_help = START_EXAMPLES)]
pub(crate) struct StartArgs {
    /// Directory for the node's identity and data; made if absent
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Address of this machine for other nodes and for initiators
    #[arg(long, value_name = "IP")]
    pub(crate) listen: IpAddr,
    /// Port for other nodes
    #[arg(long, value_name = "PORT", default_value_t = LINK_PORT)]
    pub(crate) link_port: u16,
    /// Port of the REST API
    #[arg(long, value_name = "PORT", default_value_t = holdfast_api::DEFAULT_PORT)]
    pub(crate) api_port: u16,
    /// Port of the iSCSI portal
    #[arg(long, value_name = "PORT", default_value_t = PORTAL_PORT)]
    pub(crate) portal_port: u16,
    /// Address of the REST API [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub(crate) api_listen: Option<IpAddr>,
    /// Let the REST API, which has no log-in, be used from other machines
    #[arg(long)]
    pub(crate) api_insecure: bool,
    /// Join the cluster that made this token. The environment keeps it out of process lists
    #[arg(
        long,
        value_name = "TOKEN",
        env = "HOLDFAST_JOIN",
        hide_env_values = true
    )]
    pub(crate) join: Option<String>,
    /// File or block device for the journal, remembered from the first start on; a fast disk of
    /// its own [default: in DIR]
    #[arg(long, value_name = "PATH")]
    pub(crate) journal: Option<PathBuf>,
    /// At the first start, overwrite what --journal holds
    #[arg(long, requires = "journal")]
    pub(crate) journal_force: bool,
    /// Size of the journal; fixed at the first start [default: 256MiB, or the device up to 4GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) journal_size: Option<u64>,
    /// File or block device for the home, where the volumes' data is; remembered from the first
    /// start on [default: in DIR]
    #[arg(long, value_name = "PATH")]
    pub(crate) home: Option<PathBuf>,
    /// At the first start, overwrite what --home holds
    #[arg(long, requires = "home")]
    pub(crate) home_force: bool,
    /// Size of the home, up to 256TiB; may grow later [default: 64GiB, or half of what its file
    /// system has left if that is less; of a device all of it]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) home_size: Option<u64>,
    /// At the first start, let the home take the space of its file system only as it is written,
    /// and give it back; a full file system then stops the node
    #[arg(long)]
    pub(crate) home_sparse: bool,
    /// Where another node of the cluster is now, whichever: for nodes that all have new addresses.
    /// One is enough; it may be given more than once
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) peer: Vec<String>,
    /// Warn when so much of the home is used, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 80,
          value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) space_low: u8,
    /// Warn again, of writes that will soon be refused
    #[arg(long, value_name = "PERCENT", default_value_t = 95,
          value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) space_critical: u8,
    /// End as soon as standard input ends: for a parent process that must not leave nodes behind
    #[arg(long, hide = true)]
    pub(crate) end_with_stdin: bool,
}

/// Where the API is.
#[derive(Clone, Debug, Args)]
pub(crate) struct ApiArgs {
    /// REST API of any node of the cluster: a URL, or a host and a port
    #[arg(
        long = "api",
        value_name = "URL",
        env = "HOLDFAST_API",
        default_value_t = default_api()
    )]
    url: String,
}

impl ApiArgs {
    /// Where to ask. A variable that is set to nothing is one that is not set.
    pub(crate) fn url(&self) -> String {
        match self.url.trim() {
            "" => default_api(),
            url => url.to_owned(),
        }
    }
}

fn default_api() -> String {
    format!("http://127.0.0.1:{}", holdfast_api::DEFAULT_PORT)
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) api: ApiArgs,
    /// Form of the listing
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

const REBALANCE_HELP: &str = "\
Two things can be spread. Owners: who orders a volume's I/O bears its load; a move copies nothing
and holds the volume's I/O up for some tens of milliseconds. Copies: what nodes hold; a move
copies the data to another node and then takes the old copy out, so that no slice ever has
fewer. Copies move only with --yes; without it the plan is shown, with what it would copy.

Examples:
  holdfast cluster rebalance --dry-run         owners: what would move
  holdfast cluster rebalance                   owners: moves them, one after the other
  holdfast cluster rebalance --copies          copies: what would move
  holdfast cluster rebalance --copies --yes    copies: begins to move them";

#[derive(Clone, Debug, Args)]
#[command(after_help = REBALANCE_HELP)]
pub(crate) struct RebalanceArgs {
    /// Show what would move, and move nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Also volumes whose owner somebody has chosen
    #[arg(long)]
    pub(crate) all: bool,
    /// Whether volumes move by themselves from now on; nothing else is done
    #[arg(long, value_name = "on|off", conflicts_with_all = ["dry_run", "all"],
          value_parser = parse_switch)]
    pub(crate) automatic: Option<bool>,
    /// Copies, so that nodes hold alike, in place of owners
    #[arg(long, conflicts_with_all = ["all", "automatic"])]
    pub(crate) copies: bool,
    /// Move the copies that were shown
    #[arg(long, requires = "copies", conflicts_with = "dry_run")]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ShowNodeArgs {
    /// The node's number
    pub(crate) id: u64,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

const EVICT_HELP: &str = "\
For a node whose machine or disk is lost. Its copies are made anew on other nodes that have none of
the same data; that copies everything it held, so do not do it for an outage that ends: a node that
comes back gets only the difference.

The node's data directory is refused from then on. Its machine can join again with an empty one.
A node whose disk fails three times within an hour is evicted without being asked about.

Examples:
  holdfast node evict 3
  holdfast node evict 3 --yes -o json";

#[derive(Clone, Debug, Args)]
#[command(after_help = EVICT_HELP)]
pub(crate) struct EvictArgs {
    /// The node's number
    pub(crate) id: u64,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

const SCRUB_EXAMPLES: &str = "\
Every node scrubs its disk once a week, at 4 to 32 MiB/s: each block that it holds, and the map of
blocks, are read and compared with their checksums. What the disk has lost comes back from another
copy within seconds; so does what a client's read finds damaged.

Examples:
  holdfast node scrub 3              how far it is, what it found
  holdfast node scrub 3 start        begin a pass now, after trouble with a disk
  holdfast node scrub 3 pause        stand still until told to go on, over restarts
  holdfast node scrub 3 resume";

#[derive(Clone, Debug, Args)]
#[command(after_help = SCRUB_EXAMPLES)]
pub(crate) struct ScrubArgs {
    /// The node's number
    pub(crate) id: u64,
    /// What it shall do [default: nothing; show how it is]
    #[arg(value_enum)]
    pub(crate) action: Option<ScrubChoice>,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

/// What a scrub can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ScrubChoice {
    /// Begin a pass now, from the start
    Start,
    /// Stand still until told to go on
    Pause,
    /// Go on
    Resume,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct InitArgs {
    /// A name for people
    #[arg(long, default_value = "holdfast")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

const TOKEN_EXAMPLES: &str = "\
Whoever has the token may join one node to the cluster. It names the node at --api, which the
joining machine must be able to reach.

Examples:
  holdfast cluster token --expires 10m
  HOLDFAST_JOIN=holdfast1.… holdfast node start --data /var/lib/holdfast --listen 10.0.0.12";

#[derive(Clone, Debug, Args)]
#[command(after_help = TOKEN_EXAMPLES)]
pub(crate) struct TokenArgs {
    /// How long it can be used
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub(crate) expires: Duration,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

const CREATE_EXAMPLES: &str = "\
Examples:
  holdfast volume create db --size 100GiB
  holdfast volume create scratch --size 1TiB --copies 2 --block-size 4096
  holdfast volume create vault --size 10GiB --mutual-chap -o json";

#[derive(Clone, Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub(crate) struct CreateVolumeArgs {
    /// 1 to 63 lower-case letters, digits, `-` and `.`
    pub(crate) name: String,
    /// Size as initiators see it; space is taken only by what is written
    #[arg(long, value_parser = parse_size)]
    pub(crate) size: u64,
    /// Copies of all data: one more than failures it shall survive
    #[arg(long, default_value_t = 3)]
    pub(crate) copies: u32,
    /// Logical block size, 512 or 4096
    #[arg(long, value_name = "BYTES", default_value_t = 512)]
    pub(crate) block_size: u32,
    /// Let everybody log in who reaches a portal
    #[arg(long, conflicts_with = "mutual_chap")]
    pub(crate) no_chap: bool,
    /// Make the target prove itself too
    #[arg(long)]
    pub(crate) mutual_chap: bool,
    /// Let only this initiator log in; may be given several times [default: all with the secret]
    #[arg(long, value_name = "IQN")]
    pub(crate) allow: Vec<String>,
    /// Send a login at another node to the owner: for initiators without multipath
    #[arg(long)]
    pub(crate) redirect_to_owner: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ShowVolumeArgs {
    /// The volume's name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

const RESIZE_EXAMPLES: &str = "\
I/O goes on meanwhile. Initiators are told (CAPACITY DATA HAS CHANGED); Linux wants to be asked to
look, then the filesystem can grow:
  iscsiadm -m session -R && multipathd resize map MAP && resize2fs /dev/mapper/MAP
Volumes do not shrink.

Examples:
  holdfast volume resize db --size 200GiB
  holdfast volume resize db --size +100GiB";

#[derive(Clone, Debug, Args)]
#[command(after_help = RESIZE_EXAMPLES)]
pub(crate) struct ResizeVolumeArgs {
    /// The volume's name
    pub(crate) name: String,
    /// The new size, or after `+` how much larger
    #[arg(long, value_parser = parse_new_size)]
    pub(crate) size: NewSize,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

const ACCESS_EXAMPLES: &str = "\
A volume without an access list serves every initiator that knows its secret. Once an initiator has
been allowed, only those on the list get in, or see the volume in discovery. Taking one off the list
ends its sessions; taking the last one off leaves nobody.

A name is what an initiator says of itself: the list keeps honest ones apart, the secret keeps
others out.

Examples:
  holdfast volume access db                                    who may log in
  holdfast volume access db --allow iqn.1993-08.org.debian:01:abc
  holdfast volume access db --deny iqn.1993-08.org.debian:01:abc
  holdfast volume access db --anyone";

#[derive(Clone, Debug, Args)]
#[command(after_help = ACCESS_EXAMPLES)]
pub(crate) struct AccessArgs {
    /// The volume's name
    pub(crate) name: String,
    /// Put this initiator on the list
    #[arg(long, value_name = "IQN")]
    pub(crate) allow: Vec<String>,
    /// Take this initiator off the list, and end its sessions
    #[arg(long, value_name = "IQN")]
    pub(crate) deny: Vec<String>,
    /// Drop the list: everyone with the secret may log in
    #[arg(long, conflicts_with_all = ["allow", "deny"])]
    pub(crate) anyone: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

const ROTATE_EXAMPLES: &str = "\
Sessions go on. The old secret is good for logins until the grace is over: time to give the new one
to every initiator.

Examples:
  holdfast volume rotate-secret db
  holdfast volume rotate-secret db --grace 7d
  holdfast volume rotate-secret db --grace 0       no more logins with the old one
  holdfast volume rotate-secret db --revoke        it has leaked: end its sessions, too";

#[derive(Clone, Debug, Args)]
#[command(after_help = ROTATE_EXAMPLES)]
pub(crate) struct RotateSecretArgs {
    /// The volume's name
    pub(crate) name: String,
    /// How long the old secret stays good for logins
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_grace)]
    pub(crate) grace: Duration,
    /// Void every old secret now, and end the sessions that used one
    #[arg(long, conflicts_with = "grace")]
    pub(crate) revoke: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct RevokeSecretsArgs {
    /// The volume's name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

const REDIRECT_HELP: &str = "\
Every node serves every volume; the way through its owner saves a step. `owner` sends a login at
another node there (RFC 7143: target moved temporarily). That is for initiators with one session:
multipath wants its sessions at different nodes, and finds the owner's by ALUA.";

#[derive(Clone, Debug, Args)]
#[command(after_help = REDIRECT_HELP)]
pub(crate) struct RedirectArgs {
    /// The volume's name
    pub(crate) name: String,
    /// Where initiators are served
    #[arg(value_enum)]
    pub(crate) to: RedirectTo,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

/// Where initiators are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RedirectTo {
    /// At the owner, wherever they log in
    Owner,
    /// Where they log in
    Nowhere,
}

const MOVE_EXAMPLES: &str = "\
The owner orders all I/O of a volume. It is chosen and replaced by the cluster; moving it spreads
load, or brings it to the node that initiators log in to. I/O goes on: it waits until the new owner
serves, usually far less than a second, and no initiator sees an error. Multipath initiators are
told (ASYMMETRIC ACCESS STATE CHANGED) and follow. The node has to be up and to hold a copy in sync;
`holdfast volume show` says which do. No data is copied.

Examples:
  holdfast volume move db --to 3
  holdfast volume move db --to 3 --wait 5m -o json";

#[derive(Clone, Debug, Args)]
#[command(after_help = MOVE_EXAMPLES)]
pub(crate) struct MoveVolumeArgs {
    /// The volume's name
    pub(crate) name: String,
    /// Number of the new owner
    #[arg(long, value_name = "NODE")]
    pub(crate) to: u64,
    /// How long to wait until it serves
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = parse_duration)]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct DeleteVolumeArgs {
    /// The volume's name
    pub(crate) name: String,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

const DEMO_EXAMPLES: &str = "\
What it does: starts node processes on loopback, creates a volume, runs verified load through
this project's own iSCSI initiator, kills two nodes with SIGKILL (one of them the volume's
owner), shows how long I/O stood still, verifies every acknowledged write, starts the two again
and shows what their return copied. Then it stays up until Ctrl-C for your own initiator, and
removes everything it made.

Examples:
  holdfast demo
  holdfast demo --check                      for scripts: stops after the verification
  holdfast demo --serve --portal-base 13260  five portals to play with, nothing is killed";

#[derive(Clone, Debug, Args)]
#[command(after_help = [DEMO_EXAMPLES, "\n\n", EXIT_CODES].concat())]
pub(crate) struct DemoArgs {
    /// Stop after the verification; exit code 0 only if nothing was lost
    #[arg(long, conflicts_with = "serve")]
    pub(crate) check: bool,
    /// Only serve: kill nothing, stay until Ctrl-C
    #[arg(long)]
    pub(crate) serve: bool,
    /// Nodes, 1 to 9; with fewer than five, fewer are killed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) nodes: u8,
    /// Size of the volume
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_size)]
    pub(crate) volume_size: u64,
    /// Ports of the iSCSI portals: this one and those after it [default: free ones]
    #[arg(long, value_name = "PORT")]
    pub(crate) portal_base: Option<u16>,
    /// Log in without CHAP
    #[arg(long)]
    pub(crate) no_chap: bool,
    /// Directory for the nodes' data, removed at the end [default: a new temporary one]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// `table` for people, `json` for programs: one line when ready, one with the summary
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: DemoFormat,
}

/// How the demo speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DemoFormat {
    /// For people.
    #[default]
    Table,
    /// JSON lines.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn contradicting_options_are_refused() {
        for line in [
            "holdfast demo --check --serve",
            "holdfast demo --nodes 0",
            "holdfast volume create db --size 1GiB --no-chap --mutual-chap",
            "holdfast volume create db --size 10G",
            "holdfast cluster token --expires 0s",
        ] {
            let parsed = Cli::try_parse_from(line.split_whitespace());
            assert_eq!(parsed.expect_err(line).exit_code(), 2);
        }
    }
}
