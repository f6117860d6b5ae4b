//! Journal and home of blocks on one node: crash-safe, checksummed, thin.
#![forbid(unsafe_code)]

// The ids are shared by every layer: they live in `wire` (Seq, SliceKey, View, with Display and
// serde). The store uses these and defines none of its own.
pub use holdfast_wire::{Seq, SliceKey, View};
