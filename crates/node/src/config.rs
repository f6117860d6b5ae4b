//! The config group as owners and portals see it.

use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use holdfast_config::group::ConfigGroup;
use holdfast_config::state::{Change, ClusterState, Outcome};
use holdfast_volume::Config;
use tokio::sync::watch;

pub(crate) struct GroupConfig {
    pub(crate) group: Rc<ConfigGroup>,
}

impl Config for GroupConfig {
    fn state(&self) -> Rc<ClusterState> {
        self.group.state()
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.group.watch()
    }

    fn propose(&self, change: Change, limit: Duration) -> LocalBoxFuture<'static, Option<Outcome>> {
        let group = self.group.clone();
        async move { group.propose(change, limit).await.ok() }.boxed_local()
    }

    fn read_barrier(&self, limit: Duration) -> LocalBoxFuture<'static, bool> {
        let group = self.group.clone();
        async move { group.read_barrier(limit).await.is_ok() }.boxed_local()
    }

    fn out_of_touch(&self) -> Duration {
        self.group.out_of_touch()
    }
}
