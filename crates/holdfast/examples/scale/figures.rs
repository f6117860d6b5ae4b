//! What used slices cost, for the table in the documentation.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Context as _;
use holdfast_config::group::{GroupOptions, last_known_state};
use holdfast_config::state::ClusterState;
use holdfast_runtime::NodeId;
use holdfast_runtime::host::HostDirectory;

/// The file of a node's directory in which it keeps the cluster's state.
const CONFIG: &str = "config";
/// The files in which it keeps what it has promised, and which copies it has.
const FACTS: &str = "facts";

/// Bytes that a snapshot of the cluster's state has, as a stopped node knows it.
pub(crate) fn snapshot_bytes(directory: &Path, node: u64) -> anyhow::Result<u64> {
    // Looking may complete what a kill has interrupted: that is the node's to do.
    let copy = tempfile::tempdir()?;
    for file in files(directory, CONFIG)? {
        let name = file.file_name().context("a file without a name")?;
        std::fs::copy(&file, copy.path().join(name))?;
    }
    let place = copy.path().to_owned();
    let looking = std::thread::spawn(move || {
        holdfast_runtime::host::run(async |_| -> anyhow::Result<u64> {
            let directory = Rc::new(HostDirectory::open(&place)?);
            let options = GroupOptions::default();
            let state = last_known_state::<ClusterState>(directory, NodeId(node), &options);
            let state = state.await?;
            Ok(state.pieces().map(|piece| piece.len() as u64).sum())
        })
    });
    match looking.join() {
        Ok(bytes) => bytes,
        Err(_) => anyhow::bail!("the node's config log cannot be looked at"),
    }
}

/// Bytes that a node's facts take on its disk.
pub(crate) fn facts_bytes(directory: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for file in files(directory, FACTS)? {
        // What is allocated, in units of 512 bytes, whatever the file's length.
        bytes += std::fs::metadata(&file)?.blocks() * 512;
    }
    Ok(bytes)
}

fn files(directory: &Path, prefix: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if path.is_file() && name.is_some_and(|name| name.starts_with(prefix)) {
            files.push(path);
        }
    }
    match files.is_empty() {
        true => anyhow::bail!("no {prefix} in {}", directory.display()),
        false => Ok(files),
    }
}
