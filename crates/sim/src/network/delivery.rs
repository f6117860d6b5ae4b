//! The way of one frame: sent, delayed, lost, repeated, stopped, handed over.

use std::rc::Rc;

use holdfast_runtime::{Frame, Incarnation, LinkEvent};

use super::link::Phase;
use super::{Network, Pair, Parcel, State, pair_number};
use crate::faults::FaultClass;
use crate::trace::{Step, digest};

impl Network {
    pub(super) fn send(self: &Rc<Self>, pair: Pair, incarnation: Incarnation, frame: Frame) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let latency_ns = self.latency(state, pair);
        let conditions = *state.conditions(self, pair);
        let Some(link) = state.links.get_mut(&pair) else {
            return;
        };
        let Phase::Up { process, .. } = link.phase else {
            return;
        };
        if self.random.chance(conditions.loss_ppm) {
            self.counts.fired(FaultClass::Loss);
            let number = pair_number(pair);
            let words = || format!("lost {} -> {}", pair.0, pair.1);
            self.executor
                .trace()
                .event(self.executor.now_ns(), Step::Frame, number, 0, words);
            return;
        }
        if conditions.extra_delay_ns > 0 {
            self.counts.fired(FaultClass::Delay);
        }
        let kib = (frame.header.len() + frame.payload.len()) as u64 / 1024;
        let earliest = self.executor.now_ns() + latency_ns + kib * self.timing.ns_per_kib;
        let arrival_ns = match self.random.chance(conditions.reorder_ppm) {
            true => earliest + self.random.below(latency_ns * 8 + 1),
            false => link.next_arrival(earliest),
        };
        let sequence = Some(link.next_sequence());
        let target = process;
        let parcel = Parcel {
            pair,
            incarnation,
            target,
            link: link.number,
            sequence,
            frame,
        };
        if self.random.chance(conditions.duplicate_ppm) {
            self.counts.fired(FaultClass::Duplication);
            let again = Parcel {
                sequence: None,
                frame: parcel.frame.clone(),
                ..parcel
            };
            let network = self.clone();
            let again_ns = arrival_ns + 1 + self.random.below(latency_ns * 8 + 1);
            self.executor
                .call_at(again_ns, move || network.arrive(again));
        }
        let network = self.clone();
        self.executor
            .call_at(arrival_ns, move || network.arrive(parcel));
    }

    fn arrive(&self, parcel: Parcel) {
        let pair = parcel.pair;
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let stopped_by = state.conditions(self, pair).stop();
        match state
            .links
            .get_mut(&pair)
            .filter(|link| link.number == parcel.link)
        {
            Some(link) if stopped_by.is_some() || !link.stalled.is_empty() => {
                link.stalled.push_back(parcel);
                self.count_stop(stopped_by);
                return;
            }
            Some(link) => {
                if link.overtaken(parcel.sequence) {
                    self.counts.fired(FaultClass::Reordering);
                }
            }
            None => {
                // The link broke, or its dialler died, while the frame was under way.
                if stopped_by.is_some() || self.random.chance(500_000) {
                    self.count_stop(stopped_by);
                    return;
                }
            }
        }
        self.hand_over(state, parcel);
    }

    fn count_stop(&self, stopped_by: Option<FaultClass>) {
        if let Some(class) = stopped_by {
            self.counts.fired(class);
        }
    }

    /// The way is open again: what was sent meanwhile arrives.
    pub(super) fn flush(&self, pair: Pair, number: u64) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let open = state.open(pair);
        let Some(link) = state.links.get_mut(&pair) else {
            return;
        };
        if link.number != number || !open {
            return;
        }
        let stalled = std::mem::take(&mut link.stalled);
        for parcel in &stalled {
            link.overtaken(parcel.sequence);
        }
        for parcel in stalled {
            self.hand_over(state, parcel);
        }
    }

    fn hand_over(&self, state: &State, parcel: Parcel) {
        let (from, to) = parcel.pair;
        let Some(endpoint) = state.endpoints.get(&to) else {
            return;
        };
        if endpoint.process != parcel.target || state.unpowered.contains(&to) {
            return;
        }
        let frame = parcel.frame;
        let sequence = parcel.sequence.unwrap_or(0);
        let detail = digest(&frame.header) ^ digest(&frame.payload).rotate_left(1);
        let (header, payload) = (frame.header.len(), frame.payload.len());
        self.executor.trace().event(
            self.executor.now_ns(),
            Step::Frame,
            pair_number(parcel.pair),
            detail,
            || format!("{from} -> {to} #{sequence} {header}+{payload} bytes"),
        );
        let incarnation = parcel.incarnation;
        // A process that does not listen to its links misses nothing.
        let _ = endpoint.events.send(LinkEvent::Frame {
            from,
            incarnation,
            frame,
        });
    }
}
