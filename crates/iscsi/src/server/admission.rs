//! Who may begin a login: connections that have not logged in, and what failed logins cost.
//!
//! Pure: addresses and times go in, decisions come out. What always holds:
//!
//! * at most [`Bounds::half_open`] connections have not logged in. One more takes the place of the
//!   oldest one of the network that has the most, so whoever opens many pushes out its own, and a
//!   network with one connection keeps it while another one has two;
//! * an address may fail [`Bounds::failures`] logins at once and then one each
//!   [`Bounds::failure_period`]; until it may again, its new connections and its logins under way
//!   are closed unread. Sessions that exist are not concerned;
//! * nothing is remembered about more than [`ADDRESSES_MAX`] networks.
//!
//! A network is an IPv4 address or an IPv6 prefix of 64 bits, which one host can fill with
//! addresses of its own.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Networks whose failures are remembered; beyond, the one that failed longest ago is forgotten.
pub(super) const ADDRESSES_MAX: usize = 4096;

/// What is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Connections that have not logged in.
    pub(super) half_open: usize,
    /// Failed logins of a network at once; zero lifts the limit.
    pub(super) failures: u32,
    /// Time after which one more is allowed.
    pub(super) failure_period: Duration,
}

/// Names a connection that has not logged in.
pub(super) type Visitor = u64;

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It may log in.
    Welcome(Visitor),
    /// It may log in, and this one has to go.
    Instead(Visitor, Visitor),
    /// Its network has failed too often.
    TooManyFailures,
}

/// See the module's header.
#[derive(Debug)]
pub(super) struct Admission {
    bounds: Bounds,
    next: Visitor,
    /// Those of each network, oldest first.
    visitors: BTreeMap<IpAddr, VecDeque<Visitor>>,
    count: usize,
    /// When each network will have paid for its failures: a leaky bucket, whose level is the time
    /// that is left. Times are those since the start of the server.
    paid_at: BTreeMap<IpAddr, Duration>,
}

impl Admission {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            next: 0,
            visitors: BTreeMap::new(),
            count: 0,
            paid_at: BTreeMap::new(),
        }
    }

    /// A connection was accepted.
    pub(super) fn arrived(&mut self, address: IpAddr, now: Duration) -> Decision {
        if self.has_failed_too_often(address, now) {
            return Decision::TooManyFailures;
        }
        let network = network(address);
        let evicted = if self.count >= self.bounds.half_open {
            self.oldest_of_the_most(network)
        } else {
            None
        };
        let visitor = self.next;
        self.next += 1;
        self.count += 1;
        self.visitors.entry(network).or_default().push_back(visitor);
        match evicted {
            Some(evicted) => Decision::Instead(visitor, evicted),
            None => Decision::Welcome(visitor),
        }
    }

    /// Whether an address has to wait before it may try again.
    pub(super) fn has_failed_too_often(&self, address: IpAddr, now: Duration) -> bool {
        let period = self.bounds.failure_period;
        let allowed = period * self.bounds.failures;
        !allowed.is_zero() && self.debt(network(address), now) + period > allowed
    }

    /// A connection has logged in, or ended.
    pub(super) fn left(&mut self, address: IpAddr, visitor: Visitor) {
        let network = network(address);
        let Some(of_network) = self.visitors.get_mut(&network) else {
            return;
        };
        let before = of_network.len();
        of_network.retain(|present| *present != visitor);
        // One that had to go is counted no more.
        self.count -= before - of_network.len();
        if of_network.is_empty() {
            self.visitors.remove(&network);
        }
    }

    /// A login failed to prove who it is.
    pub(super) fn failed(&mut self, address: IpAddr, now: Duration) {
        let network = network(address);
        let debt = self.debt(network, now) + self.bounds.failure_period;
        self.paid_at.insert(network, now + debt);
        if self.paid_at.len() > ADDRESSES_MAX {
            self.paid_at.retain(|_, paid_at| *paid_at > now);
        }
        if self.paid_at.len() > ADDRESSES_MAX {
            let oldest = self.paid_at.iter().min_by_key(|(_, paid_at)| **paid_at);
            if let Some(oldest) = oldest.map(|(network, _)| *network) {
                self.paid_at.remove(&oldest);
            }
        }
    }

    fn debt(&self, network: IpAddr, now: Duration) -> Duration {
        let paid_at = self.paid_at.get(&network);
        paid_at.map_or(Duration::ZERO, |paid_at| paid_at.saturating_sub(now))
    }

    /// Takes the oldest of the network with the most visitors, the newcomer counted; the oldest of
    /// all among equals.
    fn oldest_of_the_most(&mut self, newcomer: IpAddr) -> Option<Visitor> {
        let of_all = self.visitors.iter().filter_map(|(network, visitors)| {
            let count = visitors.len() + usize::from(*network == newcomer);
            let oldest = *visitors.front()?;
            Some((count, std::cmp::Reverse(oldest), *network))
        });
        let (_, _, network) = of_all.max()?;
        let visitors = self.visitors.get_mut(&network)?;
        let evicted = visitors.pop_front();
        self.count -= usize::from(evicted.is_some());
        if visitors.is_empty() {
            self.visitors.remove(&network);
        }
        evicted
    }
}

/// What counts as one peer.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn admission(half_open: usize) -> Admission {
        Admission::new(Bounds {
            half_open,
            failures: 3,
            failure_period: Duration::from_secs(1),
        })
    }

    fn host(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    #[test]
    fn a_crowd_of_one_address_pushes_out_its_own_oldest() {
        let mut admission = admission(3);
        assert_eq!(admission.arrived(host(1), NOW), Decision::Welcome(0));
        assert_eq!(admission.arrived(host(2), NOW), Decision::Welcome(1));
        assert_eq!(admission.arrived(host(2), NOW), Decision::Welcome(2));
        for visitor in 3..1000 {
            let decision = admission.arrived(host(2), NOW);
            assert_eq!(decision, Decision::Instead(visitor, visitor - 2));
            assert_eq!(admission.count, 3);
        }
        // The other address is served as if nobody else were there.
        admission.left(host(1), 0);
        assert_eq!(admission.arrived(host(1), NOW), Decision::Welcome(1000));
    }

    #[test]
    fn among_equals_the_oldest_goes() {
        let mut admission = admission(2);
        admission.arrived(host(1), NOW);
        admission.arrived(host(2), NOW);
        assert_eq!(admission.arrived(host(3), NOW), Decision::Instead(2, 0));
        assert_eq!(admission.arrived(host(4), NOW), Decision::Instead(3, 1));
    }

    #[test]
    fn one_that_was_pushed_out_is_not_counted_twice_when_it_ends() {
        let mut admission = admission(1);
        admission.arrived(host(1), NOW);
        assert_eq!(admission.arrived(host(2), NOW), Decision::Instead(1, 0));
        admission.left(host(1), 0);
        assert_eq!(admission.count, 1);
        admission.left(host(2), 1);
        assert_eq!(admission.count, 0);
        assert_eq!(admission.arrived(host(3), NOW), Decision::Welcome(2));
    }

    #[test]
    fn failures_are_allowed_at_once_and_then_at_a_rate() {
        let mut admission = admission(8);
        for _ in 0..3 {
            assert!(matches!(
                admission.arrived(host(1), NOW),
                Decision::Welcome(_)
            ));
            admission.failed(host(1), NOW);
        }
        assert_eq!(admission.arrived(host(1), NOW), Decision::TooManyFailures);
        assert!(matches!(
            admission.arrived(host(2), NOW),
            Decision::Welcome(_)
        ));
        let later = NOW + Duration::from_millis(1001);
        assert!(matches!(
            admission.arrived(host(1), later),
            Decision::Welcome(_)
        ));
        admission.failed(host(1), later);
        assert_eq!(admission.arrived(host(1), later), Decision::TooManyFailures);
    }

    #[test]
    fn what_is_remembered_of_failures_is_bounded() {
        let mut admission = admission(8);
        for number in 0..3 * ADDRESSES_MAX as u32 {
            let [_, a, b, c] = number.to_be_bytes();
            admission.failed(IpAddr::from([10, a, b, c]), NOW);
        }
        assert_eq!(admission.paid_at.len(), ADDRESSES_MAX);
        // Debts that have been paid go first.
        admission.failed(host(1), NOW + Duration::from_secs(60));
        assert_eq!(admission.paid_at.len(), 1);
    }

    #[test]
    fn an_ipv6_host_is_its_prefix_and_a_mapped_address_is_its_ipv4_one() {
        let addresses = ["2001:db8::1", "2001:db8::ffff:0:0:1"].map(|text| text.parse().unwrap());
        let [one, other] = addresses.map(network);
        assert_eq!(one, other);
        let mapped: IpAddr = "::ffff:192.0.2.7".parse().unwrap();
        assert_eq!(network(mapped), host(7));
        let elsewhere: IpAddr = "2001:db8:0:1::1".parse().unwrap();
        assert_ne!(network(elsewhere), one);
    }
}
