//! The leader says when a replaced secret or a join token has run out: from then on it is over
//! for good, whatever any node's clock says later.

use std::rc::Rc;
use std::time::Duration;

use futures::future::select;
use holdfast_config::state::Change;

use crate::node::Node;

const PROPOSAL_LIMIT: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The wall clock may be set, so it is looked at this often while something is about to run out.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long to wait until something is over; zero if it is.
fn rest(until_unix_ms: u64, now_unix_ms: u64) -> Duration {
    Duration::from_millis(until_unix_ms.saturating_sub(now_unix_ms)).min(LOOK_EVERY)
}

impl Node {
    pub(crate) async fn keep_ending_grace(self: Rc<Self>) {
        let mut state = self.group.watch();
        loop {
            state.mark_unchanged();
            let leader = self.group.leader();
            let runtime = &self.context.runtime;
            let elected = self.group.leader_changed(leader);
            let news = select(Box::pin(elected), Box::pin(state.changed()));
            let next = self.state().next_end_unix_ms();
            let Some(until_unix_ms) = next.filter(|_| self.group.is_leader()) else {
                news.await;
                continue;
            };
            let now_unix_ms = runtime.unix_time_ms();
            let rest = rest(until_unix_ms, now_unix_ms);
            if !rest.is_zero() {
                select(news, runtime.sleep(rest)).await;
                continue;
            }
            let change = Change::EndGrace { now_unix_ms };
            if let Err(error) = self.group.propose(change, PROPOSAL_LIMIT).await {
                tracing::debug!(%error, "saying again what has run out");
                runtime.sleep_roughly(RETRY_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_out_is_waited_for_in_short_looks_at_a_clock_that_may_be_set() {
        assert_eq!(rest(5_000, 5_000), Duration::ZERO);
        assert_eq!(rest(5_000, 9_000), Duration::ZERO);
        assert_eq!(rest(5_000, 4_400), Duration::from_millis(600));
        assert_eq!(rest(u64::MAX, 0), LOOK_EVERY);
    }
}
