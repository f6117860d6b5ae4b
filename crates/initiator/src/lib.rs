//! A small iSCSI initiator with a verifying load generator, for demo, bench and tests.
#![forbid(unsafe_code)]
