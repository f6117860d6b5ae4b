//! Where copies are: of new slices ([`first_write`]), and of slices whose copies have to go
//! elsewhere ([`eviction`], [`drain`]).
//!
//! Always true: no slice has two copies on one node, and every slice has one in sync.

mod drain;
mod eviction;
mod first_write;
mod layouts;
mod mending;
mod moves;
mod progress;

pub(super) use layouts::Layouts;
pub(super) use mending::Mending;
pub use mending::ToMend;
pub use progress::{DrainProgress, Unplaceable};

use super::change::Refusal;

/// Refuses what names more than one change may.
fn check_count(named: usize, most: usize) -> Result<(), Refusal> {
    if named <= most {
        return Ok(());
    }
    Err(Refusal::TooManyAtOnce {
        named: u32::try_from(named).unwrap_or(u32::MAX),
        most: most as u32,
    })
}
