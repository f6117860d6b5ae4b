//! `holdfast node start`: one node of the cluster as a process.
//!
//! | stage | REST API | links | iSCSI portal |
//! |---|---|---|---|
//! | waiting (no identity, no token) | "no cluster"; can found one | – | – |
//! | joining, recovering | "starting" | at the end | – |
//! | serving | everything | yes | once the cluster counts this start as running |
//! | leaving (SIGTERM, SIGINT) | everything | yes | asks initiators to move on |
//!
//! What must always hold:
//!
//! * the incarnation in the identity file is raised durably before any other node hears of this
//!   start, so two starts of one directory can always be told apart;
//! * the ports are held or probed before anything durable is changed, so that a taken port
//!   costs nothing;
//! * a node that the others know a newer start of ends at once: it is a copy or a ghost.

mod desk;
mod front;
mod identity;
mod listen;
mod membership;
mod moving;
mod places;
mod process;
mod serving;
mod signature;
mod sizes;

use std::path::Path;

use holdfast_runtime::NodeId;

use self::identity::Identity;
pub(crate) use self::moving::move_to;
pub(crate) use self::places::Area;
use crate::cli::StartArgs;
use crate::failure::Failure;

/// What a node's directory says of it.
pub(crate) struct Known {
    /// The directory's own number, which names the store on its disks.
    pub(crate) uuid: [u8; 16],
    /// The node's number, if it belongs to a cluster.
    pub(crate) node: Option<NodeId>,
    identity: Identity,
}

impl Known {
    /// Where an area is, if not in the directory.
    pub(crate) fn place(&self, area: Area) -> Option<&Path> {
        area.place(&self.identity)
    }

    /// Size of an area.
    pub(crate) fn bytes(&self, area: Area) -> u64 {
        area.bytes(&self.identity)
    }
}

/// Reads what a directory says of its node, and changes nothing; `None` if it says nothing.
pub(crate) fn look(directory: &Path) -> Result<Option<Known>, Failure> {
    let found = identity::IdentityFile::read(directory).map_err(Failure::of)?;
    Ok(found.map(|file| Known {
        uuid: file.identity.uuid.0,
        node: file.identity.membership.as_ref().map(|member| member.node),
        identity: file.identity,
    }))
}

/// Runs the node until it is told to end, or has to.
pub(crate) fn start(args: &StartArgs) -> Result<(), Failure> {
    listen::check(args)?;
    if args.end_with_stdin {
        process::end_with_standard_input();
    }
    let args = args.clone();
    holdfast_runtime::host::run(async |runtime| process::run(runtime, args).await)
}
