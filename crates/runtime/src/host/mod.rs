//! The host's side of the door: system calls, and the project's only `unsafe`.
