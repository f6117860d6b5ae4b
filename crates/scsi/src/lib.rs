//! The SCSI block command set (SBC-3, SPC-4) over a [`BlockDevice`].
//!
//! A transport attaches an initiator port to a [`LogicalUnit`], asks [`Attachment::admit`] what a
//! CDB wants to transfer, collects that, and runs [`Attachment::execute`]. What always holds:
//!
//! * decoding ([`command`]), sense data ([`sense`]), mode pages ([`mode`]) and reservations
//!   ([`reservation`]) are pure; only [`LogicalUnit`] and the device's futures touch anything;
//! * whatever the bytes of a CDB or of a parameter list, the answer is a status with sense data,
//!   never a panic, and no allocation exceeds [`limits::TRANSFER_BYTES_MAX`] and a response;
//! * reservations are checked when a command executes, here and, for what touches the medium,
//!   wherever the device executes it, by the standing that its nexus had when it was admitted;
//! * GOOD status on a write means that the device called the write durable (WCE is 0).
#![forbid(unsafe_code)]

pub mod attachment;
mod classes;
pub mod command;
pub mod copy;
pub mod device;
mod execute;
pub mod inquiry;
pub mod limits;
pub mod log;
pub mod memory;
pub mod mode;
pub mod nexus;
pub mod opcodes;
pub mod ports;
pub mod provisioning;
pub mod report;
pub mod reservation;
pub mod sense;
pub mod unit;

pub use attachment::{
    Admission, Admitted, Attachment, Completion, DataOut, OutcomeUnknown, Status,
};
pub use command::Command;
pub use device::{BlockDevice, CompareOutcome, DeviceError, DeviceIdentity, MappedExtent};
pub use memory::MemoryDevice;
pub use nexus::{Attention, Nexus};
pub use ports::{AccessState, NotOptimized, PortGroup, PortGroups, TargetPort};
pub use sense::{Sense, SenseKey};
pub use unit::{LogicalUnit, TaskAborter};
