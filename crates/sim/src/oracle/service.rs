//! Service without a gap: wherever the cluster has to serve, it does within a bound.
//!
//! A scenario says where service is due (a portal that is connected to a majority and to a copy
//! that counts) and reports what was served there. The oracle objects to any stretch of due time
//! without a served operation that is longer than the bound, whatever the reason.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_runtime::NodeId;
use thiserror::Error;

use crate::random::nanos;
use crate::trace::Timestamp;

/// A volume as seen through one node's portal.
pub type Path = (NodeId, u64);

/// Watches paths that have to serve.
#[derive(Debug)]
pub struct Service {
    bound_ns: u64,
    /// For each path that is due: the last served operation, or the begin of the expectation.
    due: BTreeMap<Path, u64>,
    longest_ns: u64,
}

/// A path that served nothing for too long.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "volume {volume} served nothing through node {portal} for {gap:?} from {} s on, more than \
     {bound:?}, although it could",
    Timestamp(*.since_ns)
)]
pub struct Gap {
    /// The node whose portal was asked.
    pub portal: NodeId,
    /// The volume.
    pub volume: u64,
    /// Virtual time of the last served operation, or of the begin of the expectation.
    pub since_ns: u64,
    /// How long nothing was served.
    pub gap: Duration,
    /// What was allowed.
    pub bound: Duration,
}

impl Service {
    /// Nothing is expected yet.
    pub fn new(bound: Duration) -> Self {
        Self {
            bound_ns: nanos(bound),
            due: BTreeMap::new(),
            longest_ns: 0,
        }
    }

    /// From now on exactly these paths have to serve. Those that had to before keep their clock.
    pub fn expect(&mut self, now_ns: u64, paths: impl IntoIterator<Item = Path>) {
        let before = std::mem::take(&mut self.due);
        self.due = paths
            .into_iter()
            .map(|path| (path, before.get(&path).copied().unwrap_or(now_ns)))
            .collect();
    }

    /// An operation was served.
    pub fn served(&mut self, now_ns: u64, path: Path) -> Result<(), Gap> {
        let verdict = self.judge_path(now_ns, path);
        if let Some(since_ns) = self.due.get_mut(&path) {
            self.longest_ns = self.longest_ns.max(now_ns - *since_ns);
            *since_ns = now_ns;
        }
        verdict
    }

    /// Objects to the first path that has served nothing for too long.
    pub fn judge(&self, now_ns: u64) -> Result<(), Gap> {
        self.due
            .keys()
            .try_for_each(|path| self.judge_path(now_ns, *path))
    }

    /// The longest gap on a path that was due.
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest_ns)
    }

    fn judge_path(&self, now_ns: u64, path: Path) -> Result<(), Gap> {
        let Some(since_ns) = self.due.get(&path).copied() else {
            return Ok(());
        };
        let gap_ns = now_ns - since_ns;
        if gap_ns <= self.bound_ns {
            return Ok(());
        }
        let (portal, volume) = path;
        Err(Gap {
            portal,
            volume,
            since_ns,
            gap: Duration::from_nanos(gap_ns),
            bound: Duration::from_nanos(self.bound_ns),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: Path = (NodeId(2), 1);
    const SECOND_NS: u64 = 1_000_000_000;

    fn service() -> Service {
        let mut service = Service::new(Duration::from_secs(3));
        service.expect(10 * SECOND_NS, [PATH]);
        service
    }

    #[test]
    fn a_gap_within_the_bound_is_accepted_and_measured() {
        let mut service = service();
        assert_eq!(service.served(13 * SECOND_NS, PATH), Ok(()));
        assert_eq!(service.judge(16 * SECOND_NS), Ok(()));
        assert_eq!(service.longest(), Duration::from_secs(3));
    }

    #[test]
    fn a_longer_one_is_objected_to_while_it_lasts_and_when_it_ends() {
        let mut service = service();
        let late_ns = 13 * SECOND_NS + 1;
        assert_eq!(
            service.judge(late_ns).map_err(|gap| gap.since_ns),
            Err(10 * SECOND_NS)
        );
        assert!(service.served(late_ns, PATH).is_err());
    }

    #[test]
    fn a_path_that_is_not_due_may_stand_still_and_starts_afresh() {
        let mut service = service();
        service.expect(12 * SECOND_NS, []);
        assert_eq!(service.judge(60 * SECOND_NS), Ok(()));
        assert_eq!(service.served(60 * SECOND_NS, PATH), Ok(()));
        service.expect(70 * SECOND_NS, [PATH]);
        assert_eq!(service.judge(73 * SECOND_NS), Ok(()));
        assert!(service.judge(74 * SECOND_NS).is_err());
    }

    #[test]
    fn a_path_that_stays_due_keeps_its_clock() {
        let mut service = service();
        service.expect(12 * SECOND_NS, [PATH, (NodeId(3), 1)]);
        let gap = service.judge(13 * SECOND_NS + 1).map_err(|gap| gap.portal);
        assert_eq!(gap, Err(NodeId(2)));
    }
}
