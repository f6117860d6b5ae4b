//! Answers the REST API while there is no running node to ask.

use std::future::Future;
use std::pin::pin;

use holdfast_api::{
    ClusterPhase, ClusterStatus, NO_CLUSTER, NewCluster, Problem, ProblemKind, Reply, Request,
};
use tokio::sync::mpsc;

/// Longest name of a cluster, in characters.
const NAME_CHARACTERS_MAX: usize = 63;

/// Where requests come in.
pub(super) struct Desk {
    requests: mpsc::Receiver<Request>,
}

impl Desk {
    pub(super) fn new(requests: mpsc::Receiver<Request>) -> Self {
        Self { requests }
    }

    /// The next request; never resolves if there can be none any more.
    pub(super) async fn next(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }

    /// Answers "starting" to everything until `work` is done.
    pub(super) async fn starting<T>(&mut self, what: &str, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                request = self.next() => match request {
                    Request::Cluster(reply) => {
                        let _ = reply.send(Ok(status(ClusterPhase::Starting, what)));
                    }
                    other => other.refuse(Problem::new(
                        ProblemKind::Unavailable,
                        "the node is starting",
                        "ask again in a moment, or ask another node",
                    )),
                }
            }
        }
    }

    /// Answers "no cluster" to everything until somebody wants one founded.
    pub(super) async fn until_founded(&mut self) -> (NewCluster, Reply<ClusterStatus>) {
        loop {
            match self.next().await {
                Request::Cluster(reply) => {
                    let next = "this node waits: `holdfast cluster init` founds a cluster with \
                                it; to join one, start it again with --join";
                    let _ = reply.send(Ok(status(ClusterPhase::NoCluster, next)));
                }
                Request::Found(wanted, reply) => match check(&wanted) {
                    Ok(()) => return (wanted, reply),
                    Err(problem) => {
                        let _ = reply.send(Err(problem));
                    }
                },
                other => other.refuse(Problem::new(
                    ProblemKind::NoCluster,
                    NO_CLUSTER,
                    "`holdfast cluster init` founds one; to join one, start the node with --join",
                )),
            }
        }
    }
}

fn check(wanted: &NewCluster) -> Result<(), Problem> {
    let characters = wanted.name.chars().count();
    let fits = (1..=NAME_CHARACTERS_MAX).contains(&characters);
    if fits && !wanted.name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Problem::new(
        ProblemKind::Invalid,
        format!("{:?} is no name for a cluster", wanted.name),
        format!("use 1 to {NAME_CHARACTERS_MAX} printable characters"),
    ))
}

fn status(phase: ClusterPhase, explanation: &str) -> ClusterStatus {
    ClusterStatus {
        phase,
        explanations: vec![explanation.to_owned()],
        name: None,
        id: None,
        node: None,
        leader: None,
        voters: Vec::new(),
        view: 0,
        nodes_up: 0,
        nodes: 0,
        missing_links: Vec::new(),
        volumes_open: 0,
        volumes: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names_are_short_and_printable() {
        let named = |name: &str| check(&NewCluster { name: name.into() });
        assert_eq!(named("Berlin 2"), Ok(()));
        assert_eq!(named(&"ü".repeat(63)), Ok(()));
        for wrong in ["", "a\nb", &"x".repeat(64)] {
            assert!(named(wrong).is_err(), "{wrong:?}");
        }
    }
}
