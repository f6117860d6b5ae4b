//! The holder's side of a resync and of healing: as the source of blocks, and as the copy that
//! takes them.

use bytes::Bytes;
use futures::future::join_all;
use holdfast_runtime::PAGE_BYTES;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::Row;
use holdfast_store::{Copied, CopiedBlock, CopyState};
use holdfast_wire::replica::{
    Changed, FinishMany, Install, JoinMany, JoinedSlice, ReadVersions, ReplicaRefusal,
    ReplicaReply, SlicePosition, StreamStart,
};
use holdfast_wire::{Seq, SliceKey, View};

use crate::holder::{Answer, Holder, refused};
use crate::messages;
use crate::receive::Receiver;

impl Holder {
    /// As stale copies: drops what no other copy may have, and begins to take the stream. Each that
    /// fails is left out of the answer.
    pub(crate) async fn on_join_many(&self, join: &JoinMany) -> Answer {
        let view = View(join.view);
        self.promise(join.volume, view).await?;
        // Their durable facts are written together, as all are under way at the same time.
        let joining = join.slices.iter().map(|start| async move {
            let slice = SliceKey {
                volume: join.volume,
                slice: start.slice,
            };
            let base = self.join(slice, view, *start).await.ok()?;
            Some(SlicePosition {
                slice: start.slice,
                seq: base.0,
            })
        });
        let bases = join_all(joining).await.into_iter().flatten().collect();
        self.check_view(join.volume, join.view)?;
        Ok((
            ReplicaReply {
                bases,
                ..ReplicaReply::default()
            },
            Bytes::new(),
        ))
    }

    /// Makes a copy a joining one, whose stream begins at `start`. Answers up to where it holds
    /// the whole history.
    async fn join(
        &self,
        slice: SliceKey,
        view: View,
        start: StreamStart,
    ) -> Result<Seq, ReplicaRefusal> {
        if start.next == 0 {
            return Err(ReplicaRefusal::Unknown);
        }
        let _turn = self.set_up(slice, view, start.session).await?;
        if self.has_begun(slice, start.session) {
            // It has joined, and may be in sync by now; this came late.
            return Err(ReplicaRefusal::SessionStale);
        }
        self.receiving.borrow_mut().remove(&slice);
        let mut base = self.store.base(slice);
        let stable = self.store.stable(slice);
        if planted::is_active(Bug::BaseTooHigh) {
            base = self.store.last_seq(slice);
        }
        if !planted::is_active(Bug::KeepDivergentTail) {
            // Records after the stable position may belong to a history that was given up; some
            // may still be on their way into the journal.
            self.store.truncate(slice, stable).await.map_err(refused)?;
        }
        self.store
            .set_copy_state(slice, CopyState::Joining { base })
            .await
            .map_err(refused)?;
        self.check_view(slice.volume, view.0)?;
        let receiver = Receiver::new(view, start.session, Seq(start.next));
        self.receiving.borrow_mut().insert(slice, receiver);
        Ok(base)
    }

    /// As a source: lists and reads the next blocks whose newest stable version is after
    /// `after`.
    pub(crate) async fn on_changed(&self, changed: &Changed) -> Answer {
        let slice = SliceKey {
            volume: changed.volume,
            slice: changed.slice,
        };
        self.check_view(changed.volume, changed.view)?;
        self.raise_stable(slice, View(changed.view), Seq(changed.stable))?;
        self.check_complete(slice, Row::ReadJoining)?;
        let limit = changed.limit.clamp(1, 1024) as usize;
        let found = self
            .store
            .changed_since(slice, Seq(changed.after), changed.from_block, limit)
            .await;
        let complete = found.len() < limit;
        let numbers: Vec<u32> = found.iter().map(|(block, _, _)| *block).collect();
        let copied = self
            .store
            .read_versions(slice, &numbers)
            .await
            .map_err(refused)?;
        self.check_complete(slice, Row::ReadGivenBack)?;
        let (blocks, payload) = messages::versions(copied);
        Ok((
            ReplicaReply {
                blocks,
                complete,
                ..ReplicaReply::default()
            },
            payload,
        ))
    }

    /// As a source of what another copy has lost: those of the blocks that are intact here.
    pub(crate) async fn on_read_versions(&self, read: &ReadVersions) -> Answer {
        let slice = SliceKey {
            volume: read.volume,
            slice: read.slice,
        };
        self.check_view(read.volume, read.view)?;
        self.raise_stable(slice, View(read.view), Seq(read.stable))?;
        self.check_complete(slice, Row::ReadJoining)?;
        let versions = self.store.read_versions(slice, &read.blocks).await;
        self.check_complete(slice, Row::ReadGivenBack)?;
        let mut intact = versions.map_err(refused)?;
        intact.retain(|version| version.content != Copied::Lost);
        let (blocks, payload) = messages::versions(intact);
        Ok((
            ReplicaReply {
                blocks,
                ..ReplicaReply::default()
            },
            payload,
        ))
    }

    /// As a joining copy, or one that has lost blocks: takes them, unless it has newer ones.
    pub(crate) async fn on_install(&self, install: &Install, mut payload: Bytes) -> Answer {
        let slice = SliceKey {
            volume: install.volume,
            slice: install.slice,
        };
        self.check_session(slice, install.view, install.session)?;
        let mut blocks = Vec::with_capacity(install.blocks.len());
        for version in &install.blocks {
            let content = if version.zero {
                Copied::Zero
            } else if version.lost {
                Copied::Lost
            } else if payload.len() >= PAGE_BYTES {
                Copied::Bytes(payload.split_to(PAGE_BYTES))
            } else {
                return Err(ReplicaRefusal::Unknown);
            };
            let (view, mut seq) = (View(version.view), Seq(version.seq));
            if planted::is_active(Bug::ResyncOverNewer) {
                seq = seq.max(self.store.last_seq(slice));
            }
            blocks.push(CopiedBlock {
                block: version.block,
                view,
                seq,
                content,
            });
        }
        let installed = self.store.install(slice, blocks).await;
        let not_taken = installed.map_err(refused)?.still_lost;
        self.check_session(slice, install.view, install.session)?;
        let reply = ReplicaReply {
            not_taken,
            ..ReplicaReply::default()
        };
        Ok((reply, Bytes::new()))
    }

    /// As joining copies: everything up to `stable` is here now. Each that fails is left out of the
    /// answer.
    pub(crate) async fn on_finish_many(&self, finish: &FinishMany) -> Answer {
        let finishing = finish.slices.iter().map(|joined| async move {
            let finished = self.finish(finish.volume, finish.view, *joined).await;
            finished.ok().map(|()| joined.slice)
        });
        let begun = join_all(finishing).await.into_iter().flatten().collect();
        self.check_view(finish.volume, finish.view)?;
        Ok((
            ReplicaReply {
                begun,
                ..ReplicaReply::default()
            },
            Bytes::new(),
        ))
    }

    async fn finish(
        &self,
        volume: u64,
        view: u64,
        joined: JoinedSlice,
    ) -> Result<(), ReplicaRefusal> {
        let JoinedSlice {
            slice,
            session,
            stable,
        } = joined;
        let slice = SliceKey { volume, slice };
        self.check_session(slice, view, session)?;
        self.raise_stable(slice, View(view), Seq(stable))?;
        self.store
            .set_copy_state(slice, CopyState::InSync)
            .await
            .map_err(refused)?;
        self.check_session(slice, view, session)
    }

    fn check_session(
        &self,
        slice: SliceKey,
        view: u64,
        session: u64,
    ) -> Result<(), ReplicaRefusal> {
        self.check_view(slice.volume, view)?;
        let receiving = self.receiving.borrow();
        let current = receiving
            .get(&slice)
            .is_some_and(|receiver| receiver.session == session && receiver.view == View(view));
        if current {
            Ok(())
        } else {
            Err(ReplicaRefusal::SessionStale)
        }
    }
}
