//! The iSCSI target (RFC 7143), error recovery level 0.
//!
//! The protocol is made of state machines without I/O: [`pdu`] splits and joins bytes, [`login`]
//! turns requests into responses, [`session`] turns PDUs and completions into actions. [`server`]
//! is the tokio shell around them: it moves bytes, runs commands against the SCSI unit and keeps
//! the table of sessions.
#![forbid(unsafe_code)]
// A log or an output that cannot be written must not panic.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod chap;
pub mod login;
pub mod negotiation;
pub mod pdu;
pub mod server;
pub mod session;
pub mod targets;
pub mod text;

pub use chap::Secret;
pub use server::{Limits, Server, SessionSummary, serve};
pub use targets::{Credentials, Target, TargetAuth, TargetSummary, Targets};
