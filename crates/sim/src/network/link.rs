//! One dialled connection.
//!
//! ```text
//!            peer answers                 reset or silence
//!  Dialling ──────────────▶ Up(process) ──────────────────▶ Dialling
//!     ▲ │ refused or silent
//!     └─┘ after a growing pause
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use holdfast_runtime::Incarnation;

use super::Parcel;
use crate::executor::ProcessId;

pub(super) enum Phase {
    Dialling,
    Up {
        process: ProcessId,
        incarnation: Incarnation,
    },
}

pub(super) struct Link {
    /// Changes with every change of phase.
    pub(super) number: u64,
    pub(super) phase: Phase,
    pub(super) last_seen: Option<(ProcessId, Incarnation)>,
    /// The refusal of `last_seen` has been reported.
    pub(super) refusal_told: bool,
    /// Since when the peer has not answered on an established link.
    pub(super) silent_since: Option<u64>,
    /// Frames that a partition stopped.
    pub(super) stalled: VecDeque<Parcel>,
    pause: Duration,
    last_arrival_ns: u64,
    sequence: u64,
    delivered: u64,
}

impl Link {
    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            phase: Phase::Dialling,
            last_seen: None,
            refusal_told: false,
            silent_since: None,
            stalled: VecDeque::new(),
            pause: Duration::ZERO,
            last_arrival_ns: 0,
            sequence: 0,
            delivered: 0,
        }
    }

    pub(super) fn go_up(&mut self, number: u64, process: ProcessId, incarnation: Incarnation) {
        *self = Self {
            phase: Phase::Up {
                process,
                incarnation,
            },
            last_seen: Some((process, incarnation)),
            ..Self::new(number)
        };
    }

    pub(super) fn go_down(&mut self, number: u64, refusal_told: bool) {
        *self = Self {
            last_seen: self.last_seen,
            refusal_told,
            ..Self::new(number)
        };
    }

    /// How long to wait before dialling again: doubling, within the bounds.
    pub(super) fn next_pause(&mut self, (shortest, longest): (Duration, Duration)) -> Duration {
        self.pause = (self.pause * 2).clamp(shortest, longest);
        self.pause
    }

    /// The arrival of an ordered frame: not before those already under way.
    pub(super) fn next_arrival(&mut self, earliest_ns: u64) -> u64 {
        self.last_arrival_ns = earliest_ns.max(self.last_arrival_ns + 1);
        self.last_arrival_ns
    }

    pub(super) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Notes a delivery; true if a later frame was delivered before.
    pub(super) fn overtaken(&mut self, sequence: Option<u64>) -> bool {
        let Some(sequence) = sequence else {
            return false;
        };
        let overtaken = sequence < self.delivered;
        self.delivered = self.delivered.max(sequence);
        overtaken
    }
}
