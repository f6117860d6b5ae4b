//! Periods and limits.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use crate::codec;

/// Periods of the protocol. The defaults suit 3 to 20 nodes on a local network. On a host they
/// end at the node's shared wake-ups, up to 64 ms late, which the defaults allow for.
///
/// Measured in simulation, 100 runs each: until all know of a silent death, 2.4 s (median) and 4.2
/// s (slowest) among 5 nodes, 2.8 s and 5.3 s among 20. The suspicion is most of it; the tail is
/// SWIM's random choice of whom to probe. A node sends 5 datagrams of 45 bytes a second when idle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Each node probes one member this often.
    pub probe_period: Duration,
    /// Silence after which others are asked to probe too. Below `probe_period`, so that their
    /// answers come in time.
    pub probe_timeout: Duration,
    /// Time that a suspect has to refute the suspicion.
    pub suspicion: Duration,
    /// Each node reconciles published values with one other this often.
    pub exchange_period: Duration,
    /// Members that are not alive are invited back this often.
    pub announce_period: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_millis(500),
            probe_timeout: Duration::from_millis(190),
            suspicion: Duration::from_millis(1470),
            exchange_period: Duration::from_secs(2),
            announce_period: Duration::from_secs(1),
        }
    }
}

/// Members asked to probe on one's behalf (SWIM's k).
const INDIRECT_PROBES: NonZeroUsize = NonZeroUsize::new(3).unwrap();
/// Times that a node passes on one rumour: a few times log2 of 20 nodes.
const TRANSMISSIONS: NonZeroU8 = NonZeroU8::new(10).unwrap();
/// Rumours that wait are spread this often, so that they need not wait for a probe.
pub(crate) const RUMOUR_PERIOD: Duration = Duration::from_millis(200);
const RUMOUR_FAN_OUT: NonZeroUsize = NonZeroUsize::new(3).unwrap();
/// Full member lists are compared this often, should a rumour have missed somebody.
const FEED_PERIOD: Duration = Duration::from_secs(10);
const FEED_FAN_OUT: NonZeroUsize = NonZeroUsize::new(1).unwrap();

impl Options {
    /// Panics if a period is zero or the probe time-out does not fit in the probe period.
    pub(crate) fn foca(&self) -> foca::Config {
        let periods = [self.probe_timeout, self.suspicion, self.exchange_period];
        assert!(
            periods.iter().all(|period| !period.is_zero()),
            "a period is zero"
        );
        assert!(!self.announce_period.is_zero(), "a period is zero");
        assert!(
            self.probe_timeout < self.probe_period,
            "probes would end before their answers"
        );
        foca::Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_timeout,
            num_indirect_probes: INDIRECT_PROBES,
            max_transmissions: TRANSMISSIONS,
            suspect_to_down_after: self.suspicion,
            // An identity that is down never returns: its process takes a new one, whose renewal
            // or incarnation is larger. So it need not be forgotten, and no delayed rumour can
            // raise it.
            remove_down_after: None,
            max_packet_size: codec::DATAGRAM_BYTES_MAX,
            notify_down_members: true,
            periodic_announce: Some(foca::PeriodicParams {
                frequency: FEED_PERIOD,
                num_members: FEED_FAN_OUT,
            }),
            // The core invites members back itself, also when it knows no living one.
            periodic_announce_to_down_members: None,
            periodic_gossip: Some(foca::PeriodicParams {
                frequency: RUMOUR_PERIOD,
                num_members: RUMOUR_FAN_OUT,
            }),
        }
    }
}
