//! What an `accept` that failed means.
//!
//! | error | means | so |
//! |---|---|---|
//! | `EBADF`, `EFAULT`, `EINVAL`, `ENOTSOCK` | this is no listening socket: a bug here | the listener ends |
//! | everything else | a connection failed before it was taken, or something is scarce | pause, go on |
//!
//! accept(2) names some of the second row (pending network errors, want of descriptors and memory,
//! a firewall's `EPERM`); kernels and security modules know more, and a portal must outlive them
//! all.

use std::io;
use std::time::Duration;

use tracing::warn;

const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Another connection has to end first, perhaps. A host's login takes seconds before it gives up.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// `EBADF`, `EFAULT`, `EINVAL`, `ENOTSOCK`.
const BROKEN: [i32; 4] = [9, 14, 22, 88];

/// How accepting goes.
#[derive(Default)]
pub(super) struct Accepting {
    /// Failures since the last success.
    failures: u32,
}

impl Accepting {
    pub(super) fn succeeded(&mut self) {
        if self.failures > 1 {
            warn!(self.failures, "connections are accepted again");
        }
        self.failures = 0;
    }

    /// How long to wait before the next attempt; the error if there is no use in one.
    pub(super) fn failed(&mut self, error: io::Error) -> io::Result<Duration> {
        let code = error.raw_os_error();
        if code.is_some_and(|code| BROKEN.contains(&code)) {
            return Err(error);
        }
        self.failures = self.failures.saturating_add(1);
        // Each time twice as rare: what is scarce stays so for a while.
        if self.failures.is_power_of_two() {
            warn!(%error, self.failures, "a connection was not accepted");
        }
        let doublings = (self.failures - 1).min(16);
        Ok((PAUSE_MIN * (1 << doublings)).min(PAUSE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_network_or_want_of_something_says_the_listener_goes_on() {
        // All numbers that Linux has, and one that it has not.
        for code in (1..134).chain([4096]) {
            let outcome = Accepting::default().failed(io::Error::from_raw_os_error(code));
            assert_eq!(outcome.is_err(), BROKEN.contains(&code), "error {code}");
        }
        let unnamed = Accepting::default().failed(io::ErrorKind::Other.into());
        assert_eq!(unnamed.unwrap(), PAUSE_MIN);
    }

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew_after_a_success() {
        let mut accepting = Accepting::default();
        let fail =
            |accepting: &mut Accepting| accepting.failed(io::Error::from_raw_os_error(24)).unwrap();
        let pauses: Vec<_> = (0..40).map(|_| fail(&mut accepting)).collect();
        assert!(pauses.is_sorted());
        assert_eq!((pauses[0], pauses[39]), (PAUSE_MIN, PAUSE_MAX));
        accepting.succeeded();
        assert_eq!(fail(&mut accepting), PAUSE_MIN);
    }
}
