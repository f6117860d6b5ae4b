//! Versioned messages between nodes: plain types.
//!
//! Every message travels as the header of a `runtime::Frame`, encoded as protocol buffers
//! (unknown fields are skipped, so a newer peer can add some); block contents travel beside it
//! in the frame's payload and are never copied into a message.
#![forbid(unsafe_code)]

pub mod heal;
pub mod ids;
pub mod mapped;
pub mod replica;
pub mod status;
pub mod volume;

pub use ids::{Seq, SliceKey, View, VolumeId};
