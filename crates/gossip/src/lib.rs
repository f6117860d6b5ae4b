//! Membership and health rumours over a SWIM library; it suspects, it never decides.
#![forbid(unsafe_code)]
