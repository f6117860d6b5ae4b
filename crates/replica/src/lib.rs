//! The replicated write stream: append, acknowledge, fence, resync of one copy.
#![forbid(unsafe_code)]
