//! A limit on what one input may make the target hold.
//!
//! Above the limit the allocator refuses, the process aborts, and libFuzzer keeps the input.

use std::alloc::System;

use cap::Cap;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Runs something that may hold at most `bytes` more than is held now.
pub fn bounded<T>(bytes: usize, act: impl FnOnce() -> T) -> T {
    let limit = ALLOCATOR.allocated().saturating_add(bytes);
    // An error says that more is in use already, which the line above rules out.
    let set = ALLOCATOR.set_limit(limit);
    assert!(set.is_ok(), "the limit lies above what is in use");
    let outcome = act();
    let lifted = ALLOCATOR.set_limit(usize::MAX);
    assert!(
        lifted.is_ok(),
        "there is always less than everything in use"
    );
    outcome
}
