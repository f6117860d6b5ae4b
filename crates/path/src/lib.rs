//! The path that a host's operation came by, and whether the host still holds on to it.
//!
//! A host with several paths gives one up whenever it likes, repeats elsewhere what it had sent
//! there, and goes on. What the old path still carries must not take effect later: it would
//! overwrite what the host wrote since. The portal at the old path may not hear of it: the reset
//! is lost, or lies unread in a socket while the portal's process stands still.
//!
//! So nobody relies on hearing. A [`Path`] records *evidence*: the host answered something that
//! was sent to it at a known moment, so it held on to the path then. An operation that changes
//! data needs evidence that is fresh when the owner orders it, by the owner's clock. Received
//! bytes alone are no evidence: they may have been on their way, or in the socket, for long.
//!
//! ```text
//!             held(at)                       wanted by confirm_since()
//!   host ──────────────► Path ◄───────────── portal
//!        ◄──────────────  │    challenge      │ vouches for the path to the owner
//!           NOP-In        └── end() ─────────► drops what it has not sent
//! ```
//!
//! What must always hold: evidence is never later than the moment at which what the host
//! answered was sent; a path that has ended never lives again.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use holdfast_reservation::Standing;
use thiserror::Error;
use tokio::sync::Notify;

/// The host has given the path up, or the portal has ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the path has ended")]
pub struct PathEnded;

/// A request to the host for a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Challenge {
    /// None is needed.
    Idle,
    /// Somebody waits for one to be sent.
    Wanted,
    /// One was sent at this time.
    Sent(Duration),
}

/// Who issues a path's operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A host: it has to be heard.
    Host,
    /// This node itself.
    Own,
}

/// See the crate's header. One for each session of a host.
pub struct Path {
    number: u64,
    kind: Kind,
    clock: Box<dyn Fn() -> Duration>,
    held_at: Cell<Option<Duration>>,
    ended: Cell<bool>,
    challenge: Cell<Challenge>,
    changed: Notify,
    wanted: Notify,
}

impl Path {
    /// A host's path. `number` is unique among the paths of this process and not zero; `clock`
    /// is monotonic and goes on while the process or the machine stands still.
    pub fn new(number: u64, clock: impl Fn() -> Duration + 'static) -> Rc<Self> {
        assert!(number > 0, "zero is the node's own");
        Self::of(Kind::Host, number, Box::new(clock))
    }

    /// The path of what no host has asked for: it is always held.
    pub fn own() -> Rc<Self> {
        Self::of(Kind::Own, 0, Box::new(|| Duration::ZERO))
    }

    fn of(kind: Kind, number: u64, clock: Box<dyn Fn() -> Duration>) -> Rc<Self> {
        Rc::new(Self {
            number,
            kind,
            clock,
            held_at: Cell::new(None),
            ended: Cell::new(false),
            challenge: Cell::new(Challenge::Idle),
            changed: Notify::new(),
            wanted: Notify::new(),
        })
    }

    /// The number it was made with; zero if it is the node's own.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The path's clock.
    pub fn now(&self) -> Duration {
        (self.clock)()
    }

    /// The host has answered what was sent at `at`, by the path's clock.
    pub fn held(&self, at: Duration) {
        if self.held_at.get().is_some_and(|known| known >= at) {
            return;
        }
        self.held_at.set(Some(at));
        if let Challenge::Sent(sent) = self.challenge.get()
            && sent <= at
        {
            self.challenge.set(Challenge::Idle);
        }
        self.changed.notify_waiters();
    }

    /// The host has answered the challenge. If that proved less than somebody waits for, it is
    /// asked again.
    pub fn challenge_answered(&self) {
        if let Challenge::Sent(_) = self.challenge.get() {
            self.challenge.set(Challenge::Idle);
            self.changed.notify_waiters();
        }
    }

    /// The path is over: nothing that came by it may begin to take effect.
    pub fn end(&self) {
        self.ended.set(true);
        self.changed.notify_waiters();
    }

    /// Whether it is over.
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Resolves when it is over.
    pub async fn ended(&self) {
        loop {
            let changed = self.changed.notified();
            if self.ended.get() {
                return;
            }
            changed.await;
        }
    }

    /// Time since the host was last known to hold on to the path; `None` if it never was.
    ///
    /// Whoever converts this to another clock reads that clock first: a process that stands
    /// still in between then takes the evidence for older than it is, and not for newer.
    pub fn unconfirmed_for(&self) -> Option<Duration> {
        match self.kind {
            Kind::Own => Some(Duration::ZERO),
            Kind::Host => (self.held_at.get()).map(|at| self.now().saturating_sub(at)),
        }
    }

    /// Resolves when the host is known to have held on to the path at `since` or later, by the
    /// path's clock; asks it for a sign of life if need be.
    ///
    /// # Errors
    /// The path is over.
    pub async fn confirm_since(&self, since: Duration) -> Result<(), PathEnded> {
        loop {
            let changed = self.changed.notified();
            if self.ended.get() {
                return Err(PathEnded);
            }
            let held = self.held_at.get().is_some_and(|at| at >= since);
            if held || self.kind == Kind::Own {
                return Ok(());
            }
            let asks_again = match self.challenge.get() {
                Challenge::Idle => true,
                Challenge::Wanted => false,
                // Its answer would prove too little.
                Challenge::Sent(at) => at < since,
            };
            if asks_again {
                self.challenge.set(Challenge::Wanted);
                self.wanted.notify_one();
            }
            changed.await;
        }
    }

    /// Resolves when the evidence is no older than `age` at the call, or newer.
    ///
    /// # Errors
    /// The path is over.
    pub async fn confirm(&self, age: Duration) -> Result<(), PathEnded> {
        self.confirm_since(self.now().saturating_sub(age)).await
    }

    /// Resolves when the host is to be asked for a sign of life; whoever asks says so with
    /// [`Path::challenged`].
    pub async fn challenge_wanted(&self) {
        loop {
            let wanted = self.wanted.notified();
            if self.challenge.get() == Challenge::Wanted {
                return;
            }
            wanted.await;
        }
    }

    /// The host is asked for a sign of life now. Answers the time that its answer vouches for.
    pub fn challenged(&self) -> Duration {
        let now = self.now();
        self.challenge.set(Challenge::Sent(now));
        now
    }
}

/// On whose behalf an operation runs.
#[derive(Clone)]
pub struct Requester {
    /// What the initiator port is to the volume's reservation table.
    pub standing: Standing,
    /// The path that the operation came by.
    pub path: Rc<Path>,
}

impl Requester {
    /// This node itself: a stranger to reservations.
    pub fn own() -> Self {
        Self {
            standing: Standing::default(),
            path: Path::own(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn path() -> (Rc<Path>, Rc<Cell<u64>>) {
        let now = Rc::new(Cell::new(10_000));
        let clock = now.clone();
        (
            Path::new(1, move || Duration::from_millis(clock.get())),
            now,
        )
    }

    const FRESH: Duration = Duration::from_millis(600);

    #[test]
    fn evidence_ages_and_never_goes_back() {
        let (path, now) = path();
        assert_eq!(path.unconfirmed_for(), None);
        path.held(Duration::from_millis(9_900));
        path.held(Duration::from_millis(9_800));
        assert_eq!(path.unconfirmed_for(), Some(Duration::from_millis(100)));
        now.set(18_000);
        assert_eq!(path.unconfirmed_for(), Some(Duration::from_millis(8_100)));
    }

    #[test]
    fn a_confirmation_asks_the_host_once_and_waits_for_its_answer() {
        let (path, now) = path();
        let mut confirmed = Box::pin(path.confirm(FRESH));
        assert_eq!(confirmed.as_mut().now_or_never(), None);
        assert_eq!(path.challenge_wanted().now_or_never(), Some(()));
        let sent = path.challenged();
        assert_eq!(path.challenge_wanted().now_or_never(), None, "it was asked");
        now.set(10_100);
        path.held(sent);
        assert_eq!(confirmed.as_mut().now_or_never(), Some(Ok(())));
    }

    #[test]
    fn a_challenge_that_would_prove_too_little_is_followed_by_another() {
        let (path, now) = path();
        let mut confirmed = Box::pin(path.confirm(FRESH));
        assert_eq!(confirmed.as_mut().now_or_never(), None);
        let sent = path.challenged();
        now.set(12_000);
        let mut again = Box::pin(path.confirm(FRESH));
        assert_eq!(again.as_mut().now_or_never(), None);
        assert_eq!(path.challenge_wanted().now_or_never(), Some(()));
        path.held(sent);
        assert_eq!(confirmed.as_mut().now_or_never(), Some(Ok(())));
        assert_eq!(again.as_mut().now_or_never(), None);
    }

    #[test]
    fn an_answer_that_proves_too_little_is_asked_for_again() {
        let (path, _) = path();
        let mut confirmed = Box::pin(path.confirm(Duration::ZERO));
        assert_eq!(confirmed.as_mut().now_or_never(), None);
        let sent = path.challenged();
        path.held(sent - Duration::from_millis(5));
        path.challenge_answered();
        assert_eq!(confirmed.as_mut().now_or_never(), None);
        assert_eq!(path.challenge_wanted().now_or_never(), Some(()));
    }

    #[test]
    fn the_end_of_a_path_ends_every_wait() {
        let (path, _) = path();
        let mut confirmed = Box::pin(path.confirm(FRESH));
        assert_eq!(confirmed.as_mut().now_or_never(), None);
        path.end();
        assert_eq!(confirmed.as_mut().now_or_never(), Some(Err(PathEnded)));
        assert_eq!(path.ended().now_or_never(), Some(()));
        path.held(Duration::from_millis(10_000));
        assert_eq!(path.confirm(FRESH).now_or_never(), Some(Err(PathEnded)));
    }

    #[test]
    fn the_nodes_own_path_needs_no_host() {
        let own = Path::own();
        assert_eq!(own.number(), 0);
        assert_eq!(own.confirm(Duration::ZERO).now_or_never(), Some(Ok(())));
    }
}
