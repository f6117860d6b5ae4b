//! Prints what a request between two nodes costs, over real sockets and TLS, in one thread.
//!
//! `cargo run -p holdfast-runtime --example link_latency`

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_runtime::host::{self, ClusterAuthority, ClusterId, HostLinks, LinksConfig, NodeUuid};
use holdfast_runtime::{Frame, Incarnation, NodeId, Rpc, Runtime, Service};

const REQUESTS: u64 = 20_000;
const LIMIT: Duration = Duration::from_secs(10);

fn main() {
    host::run(async |runtime| {
        let authority =
            ClusterAuthority::generate(ClusterId::random(&runtime)).expect("keys can be made");
        let (one, first) = start(&runtime, &authority, NodeId(1)).await;
        let (two, second) = start(&runtime, &authority, NodeId(2)).await;
        one.links().set_peers(vec![(NodeId(2), second)]);
        two.links().set_peers(vec![(NodeId(1), first)]);
        two.serve(Service::Replica, |_| {
            Box::pin(async { Some(Frame::new("done")) })
        });
        while one.peer_up(NodeId(2)).is_none() {
            runtime.sleep(Duration::from_millis(1)).await;
        }
        for payload_bytes in [0, 4096, 65_536] {
            for depth in [1, 32] {
                measure(&runtime, &one, payload_bytes, depth).await;
            }
        }
    });
}

async fn start(runtime: &Runtime, authority: &ClusterAuthority, node: NodeId) -> (Rc<Rpc>, String) {
    let config = LinksConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        credentials: authority.issue(node).expect("keys can be made"),
        uuid: NodeUuid::random(runtime),
        incarnation: Incarnation(1),
    };
    let links = HostLinks::bind(runtime.clone(), config)
        .await
        .expect("the port is free");
    let address = links.local_address().to_string();
    (Rpc::start(runtime.clone(), Rc::new(links)), address)
}

async fn measure(runtime: &Runtime, rpc: &Rc<Rpc>, payload_bytes: usize, depth: u64) {
    let payload = Bytes::from(vec![7; payload_bytes]);
    let start = runtime.now();
    let callers = (0..depth).map(|_| async {
        for _ in 0..REQUESTS / depth {
            let frame =
                Frame::with_payload("a request's header of some tens of bytes", payload.clone());
            let answer = rpc.call(NodeId(2), Service::Replica, frame, LIMIT).await;
            answer.expect("an answer comes");
        }
    });
    futures::future::join_all(callers).await;
    let elapsed = runtime.now() - start;
    let requests = REQUESTS / depth * depth;
    println!(
        "{payload_bytes:6} bytes, depth {depth:2}: {:6.1} us a request, {:7.0} MiB/s",
        elapsed.as_secs_f64() * 1e6 / requests as f64,
        (requests as usize * payload_bytes) as f64 / elapsed.as_secs_f64() / 1048576.0
    );
}
