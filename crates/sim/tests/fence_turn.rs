//! A fence that comes while an earlier owner sets up a slice.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join;
use holdfast_replica::{Holder, messages};
use holdfast_runtime::{NodeId, PAGE_BYTES, Rpc, Runtime, Service};
use holdfast_sim::{Machine, Options, Simulation};
use holdfast_store::{Store, StoreBounds, StoreOptions};
use holdfast_wire::replica::{
    CopyReport, Fence, Reconcile, RecordHeader, ReplicaReply, replica_request::Body,
};
use prost::Message;
use tokio::sync::oneshot;

const HOLDER: NodeId = NodeId(1);
const OWNER: NodeId = NodeId(2);
const LIMIT: Duration = Duration::from_secs(20);
const STORE: StoreOptions = StoreOptions {
    identity: *b"a fenced store!!",
    journal_bytes: 1 << 20,
    home_bytes: 16 << 20,
    home_preallocated: false,
    slice_blocks: 1024,
    bounds: StoreBounds::SERVICE,
};

/// Serves the copy once the owner is within reach.
async fn hold(machine: Machine, ready: oneshot::Sender<()>) {
    let Machine {
        runtime,
        directory,
        links,
    } = machine;
    let opened = Store::open(runtime.clone(), directory, STORE).await;
    let (store, _) = opened.expect("the store opens");
    links.set_peers(vec![(OWNER, String::new())]);
    let rpc = Rpc::start(runtime.clone(), links);
    let _holder = Holder::start(runtime.clone(), rpc.clone(), store);
    linked(&runtime, &rpc, OWNER).await;
    assert!(ready.send(()).is_ok(), "the owner waits");
    std::future::pending::<()>().await;
}

async fn linked(runtime: &Runtime, rpc: &Rpc, peer: NodeId) {
    while rpc.peer_up(peer).is_none() {
        runtime.sleep(Duration::from_millis(1)).await;
    }
}

/// What an owner asks of the copy.
struct Owner {
    rpc: Rc<Rpc>,
}

impl Owner {
    async fn ask(&self, body: Body, payload: Bytes) -> ReplicaReply {
        let frame = messages::request(body, payload);
        let answer = self.rpc.call(HOLDER, Service::Replica, frame, LIMIT).await;
        ReplicaReply::decode(answer.expect("an answer").header).expect("a reply")
    }

    async fn fence(&self, view: u64, fresh: bool) -> CopyReport {
        let fence = Fence {
            volume: 1,
            view,
            slices: vec![0],
            fresh,
            ..Fence::default()
        };
        let reply = self.ask(Body::Fence(fence), Bytes::new()).await;
        reply.fence.expect("a report").copies.remove(0)
    }

    /// Makes the slice hold one record, or none.
    async fn reconcile(&self, session: u64, holds: bool) {
        let record = RecordHeader {
            view: 1,
            seq: 1,
            blocks: 1,
            ..RecordHeader::default()
        };
        let (records, payload) = match holds {
            true => (vec![record], Bytes::from_static(&[7; PAGE_BYTES])),
            false => (Vec::new(), Bytes::new()),
        };
        let reconcile = Reconcile {
            volume: 1,
            slice: 0,
            view: 1,
            keep_through: 0,
            records,
            session,
            next: 0,
        };
        // It may be refused: its view may be over when it ends.
        self.ask(Body::Reconcile(reconcile), payload).await;
    }
}

/// What the second owner is told, and what the copy holds afterwards.
async fn reports(runtime: Runtime, owner: Owner) -> (CopyReport, CopyReport) {
    linked(&runtime, &owner.rpc, HOLDER).await;
    owner.fence(1, true).await;
    owner.reconcile(1, true).await;
    let dropping = owner.reconcile(2, false);
    let told = async {
        // The first owner's message is there, and the disks take their time.
        runtime.sleep(Duration::from_millis(1)).await;
        owner.fence(2, true).await
    };
    let ((), told) = join(dropping, told).await;
    runtime.sleep(Duration::from_secs(5)).await;
    (told, owner.fence(2, true).await)
}

#[test]
fn a_fence_reports_no_record_that_an_earlier_owner_is_about_to_drop() {
    for seed in 0..8 {
        let finished = Simulation::run(Options::new(seed), |simulation| async move {
            simulation.add_host(HOLDER);
            simulation.add_host(OWNER);
            let (ready, held) = oneshot::channel();
            simulation.start(HOLDER, |machine| hold(machine, ready));
            let (sender, receiver) = oneshot::channel();
            simulation.start(OWNER, |machine| async move {
                machine.links.set_peers(vec![(HOLDER, String::new())]);
                let rpc = Rpc::start(machine.runtime.clone(), machine.links);
                held.await.expect("the copy is served");
                let reported = reports(machine.runtime, Owner { rpc }).await;
                assert!(sender.send(reported).is_ok(), "the test waits");
                std::future::pending::<()>().await;
            });
            receiver.await.expect("both owners come to their end")
        });
        let (told, held) = finished.result.expect("the run comes to its end");
        assert_eq!(told.tail, held.tail, "seed {seed}");
    }
}
