//! What an owner knows of the hosts' paths, and what may still be ordered for each. Pure.
//!
//! A host that gives a path up goes on elsewhere, and what it had sent there must not take effect
//! later than [`GIVEN_UP_BOUND`] after. The host may have given the path up right after the last
//! evidence that it held on to it (see `holdfast_path`), so the owner judges each change in the
//! moment at which it would be ordered:
//!
//! | what is known of the path | verdict |
//! |---|---|
//! | its portal said that it ended | ended: refused |
//! | evidence no older than [`HELD_FOR`] | held |
//! | older, and since then nobody used the volume by another path | held: nobody can tell the difference |
//! | older, and somebody did; or none | doubtful: the portal has to bring newer evidence |
//!
//! What was ordered so is shown in time, too: a read that could tell waits until it is stable
//! ([`must_be_shown`]). Before this owner opened, anybody may have used the volume.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_runtime::Instant;

/// What a host has sent by a path takes effect within this time after it gave the path up, or
/// never.
pub const GIVEN_UP_BOUND: Duration = Duration::from_millis(1000);
/// How old evidence may be when a change is ordered.
pub(crate) const HELD_FOR: Duration = Duration::from_millis(600);
/// From this age of its evidence on, a change that was ordered and is not stable yet holds up
/// reads of its blocks.
pub(crate) const SHOWN_AFTER: Duration = Duration::from_millis(850);
// In between lies what the clocks of two nodes may differ by, and the way of an answer.
const _: () = assert!(HELD_FOR.as_millis() < SHOWN_AFTER.as_millis());
const _: () = assert!(SHOWN_AFTER.as_millis() < GIVEN_UP_BOUND.as_millis());

/// Paths remembered; beyond, those with old evidence are forgotten, which only asks for more.
const PATHS_MAX: usize = 1024;

/// A path: the portal's process and its number there. Number zero is no host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PathKey {
    pub(crate) origin: u64,
    pub(crate) number: u64,
}

/// Whether a change may be ordered for a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Yes; the host was known to hold on to it at this time.
    Held(Instant),
    /// Not without newer evidence.
    Doubtful,
    /// Never again.
    Ended,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    held_at: Option<Instant>,
    ended: bool,
}

/// See the module's header.
#[derive(Debug)]
pub(crate) struct Paths {
    known: BTreeMap<PathKey, Known>,
    /// Who used the volume last, and when.
    last: (Option<PathKey>, Instant),
    /// When somebody else than that did.
    before: Instant,
}

impl Paths {
    /// Of an owner that opens at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            known: BTreeMap::new(),
            last: (None, now),
            before: now,
        }
    }

    /// The owner opens at `now`: until then somebody else may have served.
    pub(crate) fn open(&mut self, now: Instant) {
        (self.last, self.before) = ((None, now), now);
    }

    /// The host was known to hold on to the path at `held_at`. Answers whether that is news.
    pub(crate) fn hold(&mut self, now: Instant, path: PathKey, held_at: Instant) -> bool {
        // A portal cannot know what has not happened yet.
        let held_at = held_at.min(now);
        if self.known.len() >= PATHS_MAX && !self.known.contains_key(&path) {
            self.forget(now);
        }
        let known = self.known.entry(path).or_default();
        let news = known.held_at.is_none_or(|before| before < held_at);
        if news {
            known.held_at = Some(held_at);
        }
        news
    }

    /// The path has ended.
    pub(crate) fn end(&mut self, now: Instant, path: PathKey) {
        if self.known.len() >= PATHS_MAX {
            self.forget(now);
        }
        self.known.entry(path).or_default().ended = true;
    }

    /// An operation on the volume has come by the path.
    pub(crate) fn note_use(&mut self, now: Instant, path: PathKey) {
        if self.last.0 != Some(path) {
            self.before = self.last.1;
        }
        self.last = (Some(path), now);
    }

    /// Whether a change may be ordered now.
    pub(crate) fn judge(&self, now: Instant, path: PathKey) -> Verdict {
        if path.number == 0 {
            return Verdict::Held(now);
        }
        let known = self.known.get(&path).copied().unwrap_or_default();
        if known.ended {
            return Verdict::Ended;
        }
        let Some(held_at) = known.held_at else {
            return Verdict::Doubtful;
        };
        let others = if self.last.0 == Some(path) {
            self.before
        } else {
            self.last.1
        };
        if now.saturating_since(held_at) <= HELD_FOR || others < held_at {
            Verdict::Held(held_at)
        } else {
            Verdict::Doubtful
        }
    }

    fn forget(&mut self, now: Instant) {
        // What comes late by a forgotten path brings no fresh evidence.
        self.known.retain(|_, known| {
            known
                .held_at
                .is_some_and(|at| now.saturating_since(at) <= HELD_FOR)
        });
    }
}

/// Whether a change whose path was last known to be held at `held_at`, ordered and not stable
/// yet, has to be shown to whoever reads its blocks now.
pub(crate) fn must_be_shown(now: Instant, held_at: Instant) -> bool {
    now.saturating_since(held_at) >= SHOWN_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: PathKey = PathKey {
        origin: 1,
        number: 7,
    };
    const NEW: PathKey = PathKey {
        origin: 2,
        number: 3,
    };

    fn at(ms: u64) -> Instant {
        Instant::default() + Duration::from_millis(ms)
    }

    fn opened() -> Paths {
        Paths::new(at(1_000))
    }

    #[test]
    fn a_path_without_evidence_is_doubtful_and_the_nodes_own_is_held() {
        let paths = opened();
        assert_eq!(paths.judge(at(2_000), OLD), Verdict::Doubtful);
        let own = PathKey {
            origin: 1,
            number: 0,
        };
        assert_eq!(paths.judge(at(2_000), own), Verdict::Held(at(2_000)));
    }

    #[test]
    fn fresh_evidence_holds_whoever_else_uses_the_volume() {
        let mut paths = opened();
        paths.hold(at(2_010), OLD, at(2_000));
        paths.note_use(at(2_100), NEW);
        assert_eq!(paths.judge(at(2_600), OLD), Verdict::Held(at(2_000)));
        assert_eq!(paths.judge(at(2_601), OLD), Verdict::Doubtful);
    }

    #[test]
    fn old_evidence_holds_as_long_as_nobody_else_uses_the_volume() {
        let mut paths = opened();
        paths.hold(at(2_010), OLD, at(2_000));
        paths.note_use(at(2_010), OLD);
        assert_eq!(paths.judge(at(60_000), OLD), Verdict::Held(at(2_000)));
        paths.note_use(at(61_000), NEW);
        paths.note_use(at(61_001), OLD);
        assert_eq!(paths.judge(at(61_002), OLD), Verdict::Doubtful);
        paths.hold(at(61_100), OLD, at(61_050));
        assert_eq!(paths.judge(at(61_100), OLD), Verdict::Held(at(61_050)));
    }

    #[test]
    fn evidence_from_before_the_owner_opened_is_too_old_soon() {
        let mut paths = opened();
        paths.hold(at(1_010), OLD, at(990));
        assert_eq!(paths.judge(at(1_010), OLD), Verdict::Held(at(990)));
        assert_eq!(paths.judge(at(1_600), OLD), Verdict::Doubtful);
    }

    #[test]
    fn an_ended_path_stays_ended() {
        let mut paths = opened();
        paths.hold(at(2_000), OLD, at(2_000));
        paths.end(at(2_001), OLD);
        paths.hold(at(2_100), OLD, at(2_100));
        assert_eq!(paths.judge(at(2_100), OLD), Verdict::Ended);
    }

    #[test]
    fn evidence_never_goes_back_and_never_lies_ahead() {
        let mut paths = opened();
        assert!(paths.hold(at(2_000), OLD, at(9_000)));
        assert!(!paths.hold(at(2_500), OLD, at(1_500)));
        paths.note_use(at(2_550), NEW);
        assert_eq!(paths.judge(at(2_600), OLD), Verdict::Held(at(2_000)));
        assert_eq!(paths.judge(at(2_700), OLD), Verdict::Doubtful);
    }

    #[test]
    fn what_many_paths_push_out_of_memory_is_doubtful() {
        let mut paths = opened();
        paths.hold(at(2_000), OLD, at(2_000));
        for number in 1..2_000 {
            paths.hold(at(5_000), PathKey { origin: 9, number }, at(5_000));
        }
        assert_eq!(paths.judge(at(5_000), OLD), Verdict::Doubtful);
    }

    #[test]
    fn a_change_is_shown_before_the_bound() {
        assert!(!must_be_shown(at(1_800), at(1_000)));
        assert!(must_be_shown(at(1_850), at(1_000)));
    }
}
