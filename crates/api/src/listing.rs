//! Listings come in pages: which entries are wanted, how many at once, and where a page ends.
//!
//! What must hold:
//!
//! * a page costs the node's thread no more than [`PAGE_MAX`] entries do, however many there are;
//! * a cursor names the last entry shown, not a position: whoever follows cursors sees every entry
//!   that was there all the time exactly once, whatever is made or deleted meanwhile.

use std::borrow::Cow;

use holdfast_config::state::{ClusterState, VolumeRecord};
use holdfast_wire::VolumeId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::problem::{Problem, ProblemKind};
use crate::types::{NodeStatus, SliceStatus, VolumeState, VolumeStatus};
use crate::views;

/// Entries of a page, where nobody says how many, and the most that there can be: making a page of
/// so many volumes holds the node's thread for a few milliseconds.
pub(crate) const PAGE_MAX: u64 = 1000;

/// Which nodes to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WhichNodes {
    /// Also those that were evicted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[param(required = false)]
    pub evicted: bool,
    /// How many at most, 1 to 1000 [default: 1000].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Go on behind an earlier page: its `next_cursor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Which volumes to list. Filters are put together: a volume has to pass all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WhichVolumes {
    /// How many at most, 1 to 1000 [default: 1000].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Go on behind an earlier page: its `next_cursor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Only volumes whose name begins so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Only volumes whose name contains this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// Only volumes in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline)]
    pub state: Option<VolumeState>,
    /// Only volumes that this node owns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u64>,
    /// Only volumes that do not serve, or lack copies.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[param(required = false)]
    pub impaired: bool,
}

/// Which slices of a volume to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WhichSlices {
    /// How many at most, 1 to 1000 [default: 1000].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Go on behind an earlier page: its `next_cursor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A page of nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodePage {
    /// In the order of their numbers.
    pub nodes: Vec<NodeStatus>,
    /// Give it as `cursor` for the next page; absent if this one is the last.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// A page of volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumePage {
    /// In the order of their names.
    pub volumes: Vec<VolumeStatus>,
    /// Give it as `cursor` for the next page; absent if this one is the last.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// A page of a volume's slices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlicePage {
    /// The slices that have a place, in their order.
    pub slices: Vec<SliceStatus>,
    /// Give it as `cursor` for the next page; absent if this one is the last.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// What kind of entry a cursor names: a cursor of one listing is refused by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    Node,
    Volume,
    Slice,
}

impl Listed {
    fn letter(self) -> &'static str {
        match self {
            Self::Node => "n.",
            Self::Volume => "v.",
            Self::Slice => "s.",
        }
    }

    fn cursor(self, last: &str) -> String {
        format!("{}{last}", self.letter())
    }

    fn last_of(self, cursor: Option<&str>) -> Result<Option<&str>, Problem> {
        let Some(cursor) = cursor else {
            return Ok(None);
        };
        let last = cursor.strip_prefix(self.letter());
        last.map(Some).ok_or_else(|| wrong_cursor(cursor))
    }

    fn number_of(self, cursor: Option<&str>) -> Result<Option<u64>, Problem> {
        let last = self.last_of(cursor)?;
        let number = last.map(str::parse).transpose();
        number.map_err(|_| wrong_cursor(cursor.unwrap_or_default()))
    }
}

fn wrong_cursor(cursor: &str) -> Problem {
    Problem::new(
        ProblemKind::Invalid,
        format!("{cursor:?} is no cursor of this listing"),
        "give back the `next_cursor` of the page before, or none for the first page",
    )
}

/// How many entries a page has.
fn size(limit: Option<u64>) -> Result<usize, Problem> {
    match limit {
        None => Ok(PAGE_MAX as usize),
        Some(limit @ 1..=PAGE_MAX) => Ok(limit as usize),
        Some(limit) => Err(Problem::new(
            ProblemKind::Invalid,
            format!("a page cannot have {limit} entries"),
            format!("ask for 1 to {PAGE_MAX} at once, and follow `next_cursor` for more"),
        )),
    }
}

/// Cuts what follows the cursor, in order, to a page; answers the cursor of the next one.
fn cut<T>(entries: &mut Vec<T>, size: usize, cursor: impl FnOnce(&T) -> String) -> Option<String> {
    if entries.len() <= size {
        return None;
    }
    entries.truncate(size);
    entries.last().map(cursor)
}

/// The volumes of one page, and the next cursor.
pub(crate) fn volumes(
    state: &ClusterState,
    which: &WhichVolumes,
) -> Result<(Vec<VolumeId>, Option<String>), Problem> {
    let size = size(which.limit)?;
    let after = Listed::Volume.last_of(which.cursor.as_deref())?;
    let filter = Filter::new(state, which);
    let entries = state.volumes.iter();
    let mut entries: Vec<(&str, VolumeId)> = entries
        .filter(|(_, record)| after.is_none_or(|after| record.name.as_str() > after))
        .filter(|(_, record)| filter.passes(record))
        .map(|(id, record)| (record.name.as_str(), *id))
        .collect();
    // Only the page has to be in order; the rest only has to be behind it.
    if entries.len() > size + 1 {
        entries.select_nth_unstable(size);
        entries.truncate(size + 1);
    }
    entries.sort_unstable();
    let next = cut(&mut entries, size, |(name, _)| Listed::Volume.cursor(name));
    Ok((entries.into_iter().map(|(_, id)| id).collect(), next))
}

/// What volumes have to pass.
struct Filter<'a> {
    which: &'a WhichVolumes,
    running: views::Running,
    prefix: Cow<'a, str>,
    contains: Cow<'a, str>,
}

impl<'a> Filter<'a> {
    fn new(state: &ClusterState, which: &'a WhichVolumes) -> Self {
        let text = |text: &'a Option<String>| text.as_deref().map_or(Cow::default(), Cow::from);
        Self {
            which,
            running: views::Running::of(state),
            prefix: text(&which.prefix),
            contains: text(&which.contains),
        }
    }

    fn passes(&self, record: &VolumeRecord) -> bool {
        let state = views::volume_state(record);
        let owner = record.owner.map(|owner| owner.node.0);
        record.name.starts_with(&*self.prefix)
            && record.name.contains(&*self.contains)
            && self.which.state.is_none_or(|wanted| wanted == state)
            && self.which.owner.is_none_or(|wanted| owner == Some(wanted))
            && (!self.which.impaired
                || state != VolumeState::Open
                || !self.running.redundancy(record).is_full())
    }
}

/// A page of nodes, out of all of them in order.
pub(crate) fn nodes(mut nodes: Vec<NodeStatus>, which: &WhichNodes) -> Result<NodePage, Problem> {
    let size = size(which.limit)?;
    if let Some(after) = Listed::Node.number_of(which.cursor.as_deref())? {
        nodes.retain(|node| node.id > after);
    }
    let next_cursor = cut(&mut nodes, size, |node| {
        Listed::Node.cursor(&node.id.to_string())
    });
    Ok(NodePage { nodes, next_cursor })
}

/// A page of a volume's slices.
pub(crate) fn slices(record: &VolumeRecord, which: &WhichSlices) -> Result<SlicePage, Problem> {
    let size = size(which.limit)?;
    let after = Listed::Slice.number_of(which.cursor.as_deref())?;
    let first = after.map_or(0, |after| after.saturating_add(1));
    let mut slices: Vec<SliceStatus> = views::slices_from(record, first).take(size + 1).collect();
    let next_cursor = cut(&mut slices, size, |slice| {
        Listed::Slice.cursor(&slice.slice.to_string())
    });
    Ok(SlicePage {
        slices,
        next_cursor,
    })
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
