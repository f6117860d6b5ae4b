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
pub use progress::{DrainProgress, Unplaceable};
