//! The SCSI block command set as a pure function of command and device.
#![forbid(unsafe_code)]
