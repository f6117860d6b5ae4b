//! The takeover: fence, union of tails, reconcile, open.
//!
//! | step | what may fail | what happens then |
//! |---|---|---|
//! | fence every in-sync copy on a running node | no answer | asked again for [`PATIENCE`]; then left out, if every slice has a complete copy without it |
//! | | it has promised a later view | this owner closes |
//! | | its copy is incomplete (records unknown) | left out: it is stale once the volume is open |
//! | | no complete copy of a slice | wait: nothing older may be served |
//! | union of tails | a position nobody holds | the union ends there: it was never acknowledged |
//! | reconcile every complete copy | no answer | left out, if another one remains; else all over |
//! | `Opened` | refused: the view is over | this owner closes |
//! | | outcome unknown | asked of the config group until known |
//!
//! What is decided is in [`core`]; this shell asks, and hears the answers.
//!
//! Copies mark nothing stable before `Opened` is agreed: until then another takeover may decide
//! differently with other copies.

mod core;
#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use holdfast_config::state::{Change, CopyStatus, Office, Outcome, Reconciled, Refusal};
use holdfast_replica::LEASE_GRACE;
use holdfast_runtime::NodeId;
use holdfast_runtime::planted::{self, Bug};
use holdfast_wire::replica::{Fence, Reconcile, RecordHeader};
use tokio::sync::mpsc::{self, UnboundedSender};

pub(crate) use self::core::Opening;

use self::core::{Agreement, Command, Event, Repair, Takeover, Witness};
use super::Owner;
use super::calls::STEP_LIMIT;

/// How long copies on nodes that count as running are waited for, beyond any lease they may
/// have to wait out.
const PATIENCE: Duration = Duration::from_millis(1000);
/// Pause before something that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Data in one reconcile message.
const RECONCILE_BYTES: usize = 4 << 20;

/// Where what was asked for is answered.
type Answers = UnboundedSender<Event>;

/// How an attempt ended.
enum Attempt {
    Ended,
    Again,
}

impl Owner {
    /// Takes the volume over, however often it needs to begin again, then opens it.
    pub(crate) async fn take_over(self: Rc<Self>) {
        while self.gate.is_taking_over() {
            match self.attempt().await {
                Attempt::Ended => return,
                Attempt::Again => self.context.runtime.sleep(RETRY_PAUSE).await,
            }
        }
    }

    async fn attempt(self: &Rc<Self>) -> Attempt {
        let Some(record) = self.record_in_office().filter(|record| !record.open) else {
            // Over; or opened by this very owner, which lost the answer and closed: only a new
            // view helps.
            self.close();
            return Attempt::Ended;
        };
        let counts =
            |status| status == CopyStatus::InSync || planted::is_active(Bug::TrustIncompleteCopy);
        let copies = record.slices.iter().map(|(index, slice)| {
            let copies = slice.copies().filter(|copy| counts(copy.status));
            (index, copies.map(|copy| copy.node).collect())
        });
        let mut takeover = Takeover::new(
            self.context.runtime.now(),
            copies.collect(),
            LEASE_GRACE + PATIENCE,
            self.slices.last_session(),
        );
        let (answers, mut events) = mpsc::unbounded_channel();
        let mut event = self.look();
        loop {
            let commands = takeover.handle(self.context.runtime.now(), event);
            self.slices.note_session(takeover.last_session());
            for command in commands {
                if let Some(end) = self.carry_out(command, &answers) {
                    return end;
                }
            }
            event = events.recv().await.expect("a sender is kept here");
            if self.record_in_office().is_none() {
                self.close();
                return Attempt::Ended;
            }
        }
    }

    fn look(&self) -> Event {
        let state = self.context.config.state();
        let running = state.nodes.keys().copied();
        let running = running.filter(|node| state.running_incarnation(*node).is_some());
        Event::Look {
            running: running.collect(),
        }
    }

    /// Begins what the command wants; its answer comes as an event. `Some` ends the attempt.
    fn carry_out(self: &Rc<Self>, command: Command, answers: &Answers) -> Option<Attempt> {
        match command {
            Command::Fence(node, slices) => self.answer(answers, async move |owner| {
                Event::Fenced(node, owner.fence(node, slices).await)
            }),
            Command::Begin(node, asked) => self.answer(answers, async move |owner| {
                let begun = owner.calls.begin_streams(node, asked.clone(), false).await;
                let done = begun.map(|(done, _)| done).unwrap_or_default();
                Event::Begun { node, asked, done }
            }),
            Command::Repair(repair) => self.answer(answers, async move |owner| {
                let done = owner.repair(&repair).await.is_some();
                Event::Repaired(repair, done)
            }),
            Command::Propose(reconciled) => self.answer(answers, async move |owner| {
                Event::Agreed(owner.agree_opened(reconciled).await)
            }),
            Command::Wait(reason) => self.wait_for(reason),
            Command::LookAgain => self.answer(answers, async move |owner| {
                owner.context.runtime.sleep(RETRY_PAUSE).await;
                owner.look()
            }),
            Command::Restart(why) => {
                let (volume, view) = (self.volume, self.view);
                tracing::debug!(%volume, %view, ?why, "takeover again");
                self.wait_for(why);
                return Some(Attempt::Again);
            }
            Command::Close => {
                self.close();
                return Some(Attempt::Ended);
            }
            Command::Open(opening) => {
                self.open(opening);
                if !planted::is_active(Bug::ServeBeforeOpened) {
                    return Some(Attempt::Ended);
                }
            }
        }
        None
    }

    fn answer(
        self: &Rc<Self>,
        answers: &Answers,
        ask: impl AsyncFnOnce(Rc<Self>) -> Event + 'static,
    ) {
        let (owner, answers) = (self.clone(), answers.clone());
        self.spawn("owner-takeover-step", async move {
            // An attempt that is over hears nothing any more.
            let _ = answers.send(ask(owner).await);
        });
    }

    async fn fence(&self, node: NodeId, slices: Vec<u32>) -> Option<Witness> {
        let incarnation = self.context.rpc.reachable(node)?;
        let mut witness = Witness {
            incarnation,
            ..Witness::default()
        };
        let fresh_from = self.context.config.state().first_fresh_slice(self.volume);
        let predecessor = self.predecessor();
        let (fresh, used): (Vec<u32>, Vec<u32>) =
            slices.into_iter().partition(|slice| *slice >= fresh_from);
        // What was ever open goes first: its fence waits for leases, that of the rest does not.
        for (slices, fresh) in [(used, false), (fresh, true)] {
            if slices.is_empty() {
                continue;
            }
            let fence = Fence {
                volume: self.volume.0,
                view: self.view.0,
                slices,
                fresh,
                predecessor: predecessor.map_or(0, |office| office.owner.node.0),
                predecessor_incarnation: predecessor.map_or(0, |office| office.owner.incarnation.0),
                predecessor_view: predecessor.map_or(0, |office| office.view.0),
            };
            let limit = LEASE_GRACE + STEP_LIMIT;
            let reply = self.calls.fence(node, fence, limit).await?;
            witness.free_bytes = reply.free_bytes;
            let reports = reply.copies.into_iter().map(|copy| (copy.slice, copy));
            witness.copies.extend(reports);
        }
        (self.context.rpc.reachable(node) == Some(incarnation)).then_some(witness)
    }

    /// Who opened the volume last, while this owner is the one that is to open it next.
    fn predecessor(&self) -> Option<Office> {
        let in_office = self.record_in_office().is_some_and(|record| !record.open);
        let state = self.context.config.state();
        let office = state.last_open.get(&self.volume).copied();
        office.filter(|_| in_office)
    }

    /// Brings one copy to the union and begins its stream; `None` if it did not work.
    async fn repair(&self, repair: &Repair) -> Option<()> {
        let Repair {
            node,
            slice,
            session,
            keep_through,
            lacks,
        } = repair;
        let next = keep_through.0 + lacks.len() as u64 + 1;
        let mut message = Reconcile {
            volume: self.volume.0,
            slice: *slice,
            view: self.view.0,
            keep_through: keep_through.0,
            records: Vec::new(),
            session: *session,
            next: 0,
        };
        let mut payload = BytesMut::new();
        for (header, holders) in lacks {
            let data = self.fetch_record(*slice, header, holders).await?;
            if payload.len() + data.len() > RECONCILE_BYTES && !message.records.is_empty() {
                let part = message.clone();
                let data = payload.split().freeze();
                self.calls.reconcile(*node, part, data).await?;
                message.keep_through = header.seq - 1;
                message.records.clear();
            }
            payload.extend_from_slice(&data);
            message.records.push(header.clone());
        }
        message.next = next;
        self.calls.reconcile(*node, message, payload.freeze()).await
    }

    async fn fetch_record(
        &self,
        slice: u32,
        header: &RecordHeader,
        holders: &[NodeId],
    ) -> Option<Bytes> {
        if header.zero {
            return Some(Bytes::new());
        }
        for node in self.nearest_first(holders.to_vec()) {
            let data = self.calls.fetch_record(node, slice, header).await;
            if data.is_some() {
                return data;
            }
        }
        None
    }

    /// Agrees on the opening with the config group.
    async fn agree_opened(&self, reconciled: Reconciled) -> Agreement {
        // Of this view, so it has no copy in sync that the attempt has not seen.
        let Some(record) = self.record_in_office() else {
            return Agreement::Over;
        };
        let left_out = reconciled.left_out(&record.slices);
        let change = Change::OpenedBut {
            volume: self.volume,
            view: self.view,
            slices: reconciled.slices.len() as u32,
            incarnations: reconciled.incarnations,
            left_out,
        };
        match self.context.config.propose(change, STEP_LIMIT * 2).await {
            Some(Outcome::Done) => Agreement::Done,
            Some(Outcome::Refused(Refusal::LastCopy)) => Agreement::RestartedCopy,
            // Refused: another view is in force. Unknown: this owner leaves, and asks for a new
            // view; an opening that takes effect later is undone by it.
            Some(_) | None => Agreement::Over,
        }
    }
}
