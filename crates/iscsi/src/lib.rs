//! iSCSI target: PDU codec, login, sessions (RFC 7143).
#![forbid(unsafe_code)]
