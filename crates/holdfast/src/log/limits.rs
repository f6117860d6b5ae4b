//! How often lines of one kind are written. A kind is the place in the code that says it.
//!
//! Each kind has a budget: a burst, and one more line each time a pause is over. Lines that anybody
//! can cause who reaches a port have a small one: with all of them at their limit a day's log has
//! some megabytes.

use std::collections::HashMap;
use std::time::Duration;

use tracing::callsite::Identifier;

/// What a kind of line may take.
struct Budget {
    burst: u32,
    pause: Duration,
}

/// Hundreds of volumes may change their owner at once.
const OWN: Budget = Budget {
    burst: 300,
    pause: Duration::from_secs(5),
};
/// What needs no log-in.
const STRANGERS: Budget = Budget {
    burst: 20,
    pause: Duration::from_secs(60),
};

/// Where strangers are talked to.
const DOORS: [&str; 4] = [
    "holdfast_iscsi",
    "holdfast_api::serve",
    "holdfast_runtime::host::greeting",
    "holdfast::node::front",
];

/// What happens to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Write,
    /// Others of its kind were not written.
    WriteAfter {
        left_out: u64,
    },
    /// It is the first that is not written.
    LeaveOutFirst {
        pause: Duration,
    },
    LeaveOut,
}

/// The state of one kind's budget.
struct Account {
    lines: u32,
    filled: Duration,
    left_out: u64,
}

/// The budgets of all kinds. There are only as many as places in the code.
#[derive(Default)]
pub(super) struct Limits {
    accounts: HashMap<Identifier, Account>,
}

impl Limits {
    /// Judges a line of this kind, `now` after the start.
    pub(super) fn judge(&mut self, now: Duration, kind: Identifier, target: &str) -> Verdict {
        let budget = budget(target);
        self.accounts
            .entry(kind)
            .or_insert(Account {
                lines: budget.burst,
                filled: now,
                left_out: 0,
            })
            .judge(now, &budget)
    }
}

impl Account {
    fn judge(&mut self, now: Duration, budget: &Budget) -> Verdict {
        let since = now.saturating_sub(self.filled);
        let more = since.as_nanos() / budget.pause.as_nanos();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        self.lines = self.lines.saturating_add(more).min(budget.burst);
        self.filled = if self.lines == budget.burst {
            now
        } else {
            self.filled + budget.pause * more
        };
        if self.lines > 0 {
            self.lines -= 1;
            return match std::mem::take(&mut self.left_out) {
                0 => Verdict::Write,
                left_out => Verdict::WriteAfter { left_out },
            };
        }
        self.left_out += 1;
        match self.left_out {
            1 => Verdict::LeaveOutFirst {
                pause: budget.pause,
            },
            _ => Verdict::LeaveOut,
        }
    }
}

fn budget(target: &str) -> Budget {
    let within = |door: &str| {
        target
            .strip_prefix(door)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    if DOORS.into_iter().any(within) {
        STRANGERS
    } else {
        OWN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(budget: &Budget) -> Account {
        Account {
            lines: budget.burst,
            filled: Duration::ZERO,
            left_out: 0,
        }
    }

    #[test]
    fn a_flood_leaves_a_line_now_and_then_with_the_number_of_the_others() {
        let mut account = full(&STRANGERS);
        let mut written = 0;
        let mut counted = 0;
        // A day of a hundred logins a second.
        for step in 0..86_400 * 100u64 {
            match account.judge(Duration::from_millis(step * 10), &STRANGERS) {
                Verdict::Write => written += 1,
                Verdict::WriteAfter { left_out } => {
                    written += 1;
                    counted += left_out;
                }
                Verdict::LeaveOutFirst { .. } | Verdict::LeaveOut => {}
            }
        }
        assert_eq!(written, 20 + 86_400 / 60 - 1);
        assert_eq!(written + counted + account.left_out, 86_400 * 100);
    }

    #[test]
    fn the_first_that_is_left_out_is_said_each_time_anew() {
        let mut account = full(&STRANGERS);
        let at = Duration::from_secs;
        for _ in 0..STRANGERS.burst {
            assert_eq!(account.judge(at(0), &STRANGERS), Verdict::Write);
        }
        let pause = STRANGERS.pause;
        for (second, verdict) in [
            (1, Verdict::LeaveOutFirst { pause }),
            (2, Verdict::LeaveOut),
            (60, Verdict::WriteAfter { left_out: 2 }),
            (61, Verdict::LeaveOutFirst { pause }),
            (120, Verdict::WriteAfter { left_out: 1 }),
            // Long enough for the whole burst.
            (100_000, Verdict::Write),
        ] {
            assert_eq!(account.judge(at(second), &STRANGERS), verdict, "{second}");
        }
        assert_eq!(account.lines, STRANGERS.burst - 1);
    }

    #[test]
    fn doors_are_told_from_what_only_begins_like_them() {
        for (target, burst) in [
            ("holdfast_iscsi", STRANGERS.burst),
            ("holdfast_iscsi::server::connection", STRANGERS.burst),
            ("holdfast_iscsi_else", OWN.burst),
            ("holdfast_runtime::host::mesh", OWN.burst),
        ] {
            assert_eq!(budget(target).burst, burst, "{target}");
        }
    }
}
