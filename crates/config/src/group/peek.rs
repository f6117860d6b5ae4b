//! What a stopped node knows: its snapshot and the committed entries behind it.

use std::rc::Rc;

use holdfast_runtime::{Directory, NodeId};
use openraft::RaftLogReader;
use openraft::storage::{RaftLogStorage, RaftStateMachine};

use super::GroupOptions;
use super::error::GroupError;
use super::shell::{Shell, View};
use super::store::Store;
use super::types::Machine;

/// The state as far as this node has heard that it is committed; others may know more. Opening the
/// log may complete what a crash interrupted: give it a copy of what must not change.
pub async fn last_known_state<M: Machine>(
    directory: Rc<dyn Directory>,
    node: NodeId,
    options: &GroupOptions,
) -> Result<Rc<M>, GroupError> {
    let inconsistent = |error: super::types::StorageError| GroupError::Inconsistent(error.into());
    let opened = Store::open(directory, node, options.half_sizes(), false).await?;
    let mut store: Store<M> = opened.ok_or(GroupError::Missing)?;
    let view = View::new();
    let mut shell = Shell::recover(store.clone(), view.clone(), options.log_bounds())
        .await
        .map_err(inconsistent)?;
    if let Some(committed) = store.read_committed().await.map_err(inconsistent)? {
        let (applied, _) = shell.applied_state().await.map_err(inconsistent)?;
        let next = applied.map_or(0, |last| last.index + 1);
        let entries = store.try_get_log_entries(next..committed.index + 1).await;
        shell
            .apply(entries.map_err(inconsistent)?)
            .await
            .map_err(inconsistent)?;
    }
    Ok(view.state())
}
