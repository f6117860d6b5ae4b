//! Where an owner is in its life, and what it lets in.
//!
//! ```text
//!               opened                drain
//!  TakingOver ─────────► Open ───────────────► Draining
//!      │                  │                       │
//!      └──────────────────┴────► Closed ◄─────────┘   view over, node fenced, handed over
//! ```
//!
//! | state | new operations | operations under way | leases |
//! |---|---|---|---|
//! | `TakingOver` | sent back | none | none |
//! | `Open` | let in | go on | renewed while in use |
//! | `Draining` | sent back | go on | given back, never renewed |
//! | `Closed` | sent back | answered "interrupted" | given back |

use std::cell::Cell;

use tokio::sync::Notify;

/// See the module's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    TakingOver,
    Open,
    Draining,
    Closed,
}

/// The state, and whoever waits for its end.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Cell<State>,
    closing: Notify,
}

impl Gate {
    /// Of an owner that takes office.
    pub(crate) fn new() -> Self {
        Self {
            state: Cell::new(State::TakingOver),
            closing: Notify::new(),
        }
    }

    pub(crate) fn is_taking_over(&self) -> bool {
        self.state.get() == State::TakingOver
    }

    /// Whether new operations are let in.
    pub(crate) fn admits(&self) -> bool {
        self.state.get() == State::Open
    }

    /// Whether operations that were let in go on.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state.get(), State::Open | State::Draining)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.state.get() == State::Draining
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.get() == State::Closed
    }

    /// The takeover has succeeded; false if the office has ended meanwhile.
    pub(crate) fn open(&self) -> bool {
        let taking_over = self.is_taking_over();
        if taking_over {
            self.state.set(State::Open);
        }
        taking_over
    }

    /// Lets nothing new in; false if nothing was served.
    pub(crate) fn drain(&self) -> bool {
        let open = self.is_open();
        if open {
            self.state.set(State::Draining);
        }
        open
    }

    /// Ends the office for good; answers what it was before.
    pub(crate) fn close(&self) -> State {
        let before = self.state.replace(State::Closed);
        self.closing.notify_waiters();
        before
    }

    /// Resolves when the office has ended.
    pub(crate) async fn closed(&self) {
        loop {
            let closing = self.closing.notified();
            if self.is_closed() {
                return;
            }
            closing.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// What it lets in, lets go on, and whether it has ended.
    fn shown(gate: &Gate) -> (bool, bool, bool) {
        (gate.admits(), gate.is_open(), gate.is_closed())
    }

    #[test]
    fn an_owner_serves_from_its_opening_on_and_ends_what_it_has_while_it_drains() {
        let gate = Gate::new();
        assert_eq!(shown(&gate), (false, false, false));
        assert!(!gate.drain(), "nothing is served yet");
        assert!(gate.open());
        assert_eq!(shown(&gate), (true, true, false));
        assert!(!gate.open(), "it opens once");
        assert!(gate.drain());
        assert_eq!(shown(&gate), (false, true, false));
        assert!(gate.closed().now_or_never().is_none());
        assert_eq!(gate.close(), State::Draining);
        assert_eq!(shown(&gate), (false, false, true));
    }

    #[test]
    fn a_closed_owner_stays_closed() {
        let gate = Gate::new();
        assert_eq!(gate.close(), State::TakingOver);
        assert!(!gate.open() && !gate.drain());
        assert_eq!(gate.close(), State::Closed);
        assert!(gate.closed().now_or_never().is_some());
    }

    #[test]
    fn whoever_waits_for_the_end_hears_of_it() {
        let gate = Gate::new();
        let mut waiting = Box::pin(gate.closed());
        assert!(waiting.as_mut().now_or_never().is_none());
        gate.close();
        assert!(waiting.now_or_never().is_some());
    }
}
