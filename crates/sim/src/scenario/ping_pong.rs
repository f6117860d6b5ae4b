//! Nodes that call one another without end: the simulator's own test, and that of
//! [`holdfast_runtime::Rpc`].
//!
//! Oracles: a request runs at most once per start of its receiver; an answered request has run,
//! and its answer is its own; after healing every node reaches every other.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_runtime::rpc::Service;
use holdfast_runtime::{Frame, Incarnation, NodeId, Rpc, Runtime};

use crate::faults::nemesis::{Nemesis, NemesisOptions, Surroundings};
use crate::report::{Failure, SeedResult};
use crate::runner::{Checked, Scenario, run_seed};
use crate::simulation::{Machine, Options, Simulation};
use crate::trace::TraceText;

/// The scenario.
#[derive(Clone, Copy, Debug)]
pub struct PingPong;

const DISTURBED_FOR: Duration = Duration::from_secs(20);
const HEALED_FOR: Duration = Duration::from_secs(5);
const CALL_LIMIT: Duration = Duration::from_millis(800);

impl Scenario for PingPong {
    fn name(&self) -> &'static str {
        "ping-pong"
    }

    fn run(&self, seed: u64, trace: TraceText) -> SeedResult {
        run_seed(
            Options {
                trace,
                ..Options::new(seed)
            },
            |simulation| play(simulation, true),
        )
    }
}

/// What all nodes did, seen from outside.
#[derive(Default)]
struct Observed {
    next_request: u64,
    /// Which request ran on which start of which node, and how often.
    runs: BTreeMap<(u64, NodeId, Incarnation), u64>,
    answered: u64,
    failed: u64,
    /// The last answer of each pair, in virtual nanoseconds.
    last_answer_ns: BTreeMap<(NodeId, NodeId), u64>,
    objection: Option<Failure>,
}

type Shared = Rc<RefCell<Observed>>;

async fn play(simulation: Simulation, with_faults: bool) -> Result<Checked, Failure> {
    let count = simulation.random("nodes").between(2, 6);
    let nodes: Vec<NodeId> = (1..=count).map(NodeId).collect();
    let observed = Shared::default();
    for node in &nodes {
        simulation.add_host(*node);
    }
    let starter = {
        let (simulation, nodes, observed) = (simulation.clone(), nodes.clone(), observed.clone());
        Rc::new(move |node| start(&simulation, node, &nodes, &observed))
    };
    for node in &nodes {
        starter(*node);
    }
    if with_faults {
        let options = NemesisOptions::everyday(nodes.len());
        Nemesis::new(simulation.clone(), options, Surroundings::plain(starter))
            .run(DISTURBED_FOR)
            .await;
    }
    let healed_ns = simulation.now_ns();
    simulation.runtime().sleep(HEALED_FOR).await;
    let observed = observed.borrow();
    if let Some(objection) = &observed.objection {
        return Err(objection.clone());
    }
    for from in &nodes {
        for to in nodes.iter().filter(|to| *to != from) {
            if observed
                .last_answer_ns
                .get(&(*from, *to))
                .is_none_or(|at_ns| *at_ns < healed_ns)
            {
                let what = format!("node {to} never answered node {from} after healing");
                return Err(Failure::oracle("progress", what));
            }
        }
    }
    Ok(Checked {
        operations: observed.answered + observed.failed,
        figures: vec![("requests answered", observed.answered)],
    })
}

fn start(simulation: &Simulation, node: NodeId, nodes: &[NodeId], observed: &Shared) {
    let (nodes, observed, world) = (nodes.to_vec(), observed.clone(), simulation.clone());
    simulation.start(node, move |machine| {
        serve_and_call(machine, nodes, observed, world)
    });
}

async fn serve_and_call(machine: Machine, nodes: Vec<NodeId>, observed: Shared, world: Simulation) {
    let Machine { runtime, links, .. } = machine;
    let peers: Vec<NodeId> = nodes
        .into_iter()
        .filter(|peer| *peer != links.local_node())
        .collect();
    links.set_peers(
        peers
            .iter()
            .map(|peer| (*peer, format!("node-{peer}.simulated")))
            .collect(),
    );
    let rpc = Rpc::start(runtime.clone(), links);
    let this = (rpc.local_node(), rpc.local_incarnation());
    let (clock, witness) = (runtime.clone(), observed.clone());
    rpc.serve(Service::Volume, move |incoming| {
        let (clock, witness) = (clock.clone(), witness.clone());
        Box::pin(async move { answer(&clock, &witness, this, &incoming.frame).await })
    });
    for peer in peers {
        let (rpc, runtime, observed, world) = (
            rpc.clone(),
            runtime.clone(),
            observed.clone(),
            world.clone(),
        );
        runtime.clone().spawn("caller", async move {
            loop {
                call_once(&rpc, &observed, peer, &world).await;
                let pause = Duration::from_micros(runtime.random_below(20_000));
                runtime.sleep(pause).await;
            }
        });
    }
    std::future::pending().await
}

async fn answer(
    clock: &Runtime,
    observed: &Shared,
    (node, incarnation): (NodeId, Incarnation),
    frame: &Frame,
) -> Option<Frame> {
    let request = number_of(&frame.header)?;
    {
        let mut observed = observed.borrow_mut();
        let runs = observed
            .runs
            .entry((request, node, incarnation))
            .or_default();
        *runs += 1;
        if *runs > 1 {
            let what = format!("request {request} ran {runs} times on node {node}");
            observed
                .objection
                .get_or_insert(Failure::oracle("at-most-once", what));
        }
    }
    if clock.random_below(4) == 0 {
        clock
            .sleep(Duration::from_micros(clock.random_below(5_000)))
            .await;
    }
    Some(Frame::with_payload(
        frame.header.clone(),
        frame.payload.clone(),
    ))
}

async fn call_once(rpc: &Rpc, observed: &Shared, peer: NodeId, world: &Simulation) {
    if rpc.reachable(peer).is_none() {
        // A call would fail at once.
        return;
    }
    let request = {
        let mut observed = observed.borrow_mut();
        observed.next_request += 1;
        observed.next_request
    };
    let payload = Bytes::from(vec![request as u8; (request % 3 * 2048) as usize]);
    let frame = Frame::with_payload(request.to_le_bytes().to_vec(), payload.clone());
    let outcome = rpc.call(peer, Service::Volume, frame, CALL_LIMIT).await;
    let mut observed = observed.borrow_mut();
    match outcome {
        Ok(answer) => {
            observed.answered += 1;
            observed
                .last_answer_ns
                .insert((rpc.local_node(), peer), world.now_ns());
            let own = number_of(&answer.header) == Some(request) && answer.payload == payload;
            let earliest = (request, peer, Incarnation(0));
            let latest = (request, peer, Incarnation(u64::MAX));
            let ran = observed.runs.range(earliest..=latest).next().is_some();
            if !own || !ran {
                let what = format!("request {request} to node {peer}: own {own}, ran {ran}");
                observed
                    .objection
                    .get_or_insert(Failure::oracle("answers", what));
            }
        }
        Err(_) => observed.failed += 1,
    }
}

fn number_of(header: &Bytes) -> Option<u64> {
    header.as_ref().try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::FaultClass;
    use crate::runner::{Amount, Plan, run_seeds};

    #[test]
    fn the_same_seed_leaves_the_same_trace_and_another_seed_another() {
        let hash = |seed| PingPong.run(seed, TraceText::Off).trace_hash;
        assert_eq!(hash(1), hash(1));
        assert_ne!(hash(1), hash(2));
        let ring = PingPong.run(1, TraceText::Ring(100));
        assert_eq!(ring.trace_hash, hash(1), "text does not change the run");
        assert_eq!(ring.trace_lines.len(), 100);
    }

    #[test]
    fn without_faults_every_request_is_answered() {
        let result = run_seed(Options::new(3), |simulation| play(simulation, false));
        assert_eq!(result.failure, None);
        assert_eq!(result.operations, result.figures["requests answered"]);
        assert!(result.operations > 1_000, "{}", result.operations);
        assert!(
            result.faults.values().all(|times| *times == 0),
            "{:?}",
            result.faults
        );
    }

    #[test]
    fn requests_run_at_most_once_under_every_fault_of_the_network_and_of_processes() {
        let plan = Plan {
            start: 0,
            amount: Amount::Seeds(40),
            threads: 2,
            trace: TraceText::Off,
            repeat_every: 8,
            stop_at_failure: false,
            bug: None,
        };
        let report = run_seeds(&PingPong, plan, |_, _| {});
        assert!(report.passed(), "{}", report.to_table());
        assert_eq!(report.repeated, 5);
        for class in [
            FaultClass::Delay,
            FaultClass::Loss,
            FaultClass::Duplication,
            FaultClass::Reordering,
            FaultClass::OneWayPartition,
            FaultClass::FullPartition,
            FaultClass::Crash,
            FaultClass::CrashAtPoll,
            FaultClass::PowerCut,
            FaultClass::PowerCutOfAll,
            FaultClass::ShortPause,
            FaultClass::PausePastLease,
            FaultClass::ClockDrift,
        ] {
            assert!(
                report.faults[&class] > 0,
                "{class} never fired:\n{}",
                report.to_table()
            );
        }
    }
}
