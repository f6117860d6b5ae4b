//! Reservations at the owner: the place where they bind.
//!
//! The table is part of the config state, so every node has it, some a little later than others.
//! What is promised: **once a change of reservations has been answered, no access that it forbids
//! takes effect any more, on whichever node its initiator is logged in.** Why it holds:
//!
//! 1. An access carries the [`Standing`] that its nexus had when the command arrived: the number
//!    of its registration. Numbers are never given twice, so a nexus that was preempted and
//!    registers anew does not lend its new rights to an old command.
//! 2. The owner looks at its applied table at the moment when it gives a write its place in a
//!    slice's stream ([`Owner::check_reservations`] in `submit`), and nothing is awaited in
//!    between. So each write is ordered either before the change as this owner applied it, or
//!    after and then refused. Reads are looked at again after their data was fetched.
//! 3. Before a change is answered, the portal that proposed it, having applied it, asks the owner
//!    to settle ([`Owner::settle`]): to have applied the change too, and to bring every write
//!    that has a place in a stream to its end. When the owner says so, whatever it let through
//!    under the older table has taken effect, and a read shows it.
//! 4. The portal asks the owner of the newest view at or after the change in the log. If that
//!    owner is superseded later, the successor took office by a later entry of the log, so it has
//!    applied the change before it serves; what its predecessor had in flight is decided by the
//!    takeover, before `Opened`. If the owner changes while the portal asks, the answer is "not
//!    owner", and the portal asks the next one. A superseded owner that does not know it yet can
//!    answer nothing: its writes lack acknowledgements, its reads leases.
//! 5. An access that was let through by an old owner and is repeated at a new one is looked at
//!    again, unless the new owner finds it in the stream: then it took effect before the takeover
//!    and is only answered.
//!
//! PREEMPT AND ABORT needs no more than that: the numbers of the removed registrations are noted
//! in the table, and their commands are refused for ever, also where no reservation forbids them.
//!
//! The other way round, a new registrant must not be refused by an owner that has not heard of
//! it: the standing says which revision of the table it comes from, and an owner with an older
//! one waits ([`Owner::knows_reservations`]).

use std::time::Duration;

use holdfast_reservation::{Access, Standing};
use holdfast_runtime::reach::{self, Row};
use holdfast_wire::volume::IoStatus;
use holdfast_wire::{Seq, VolumeId};

use super::Owner;
use super::slice::Slice;
use crate::context::Context;

/// How long an applied state may lag before whoever asks is told to come again.
const LAG_LIMIT: Duration = Duration::from_secs(2);

/// Waits until this node has applied this revision of the volume's table; false if that takes
/// too long. A volume that does not exist has nothing to wait for.
pub(crate) async fn known(context: &Context, volume: VolumeId, revision: u64) -> bool {
    let mut watch = context.config.watch();
    let give_up = context.runtime.now() + LAG_LIMIT;
    loop {
        watch.mark_unchanged();
        let state = context.config.state();
        let record = state.volumes.get(&volume);
        if record.is_none_or(|record| record.reservations.revision() >= revision) {
            return true;
        }
        let left = give_up.saturating_since(context.runtime.now());
        let changed = context.runtime.timeout(left, watch.changed()).await;
        if left.is_zero() || !matches!(changed, Some(Ok(()))) {
            return false;
        }
    }
}

impl Owner {
    pub(crate) async fn knows_reservations(&self, revision: u64) -> bool {
        known(&self.context, self.volume, revision).await
    }

    /// Refuses an access that the table forbids at this moment.
    pub(crate) fn check_reservations(
        &self,
        standing: Standing,
        access: Access,
    ) -> Result<(), IoStatus> {
        let table = self.context.config.state().reservations(self.volume);
        if table.admits(standing, access) {
            Ok(())
        } else {
            if access == Access::Write {
                reach::note(Row::WriteReserved);
            }
            Err(IoStatus::Reserved)
        }
    }

    /// Reads for an initiator, of which the table is asked before and after.
    pub(crate) async fn read_for<T>(
        &self,
        standing: Standing,
        read: impl Future<Output = Result<T, IoStatus>>,
    ) -> Result<T, IoStatus> {
        self.check_reservations(standing, Access::Read)?;
        let data = read.await?;
        self.check_reservations(standing, Access::Read)?;
        Ok(data)
    }

    /// See point 3 of the module's header.
    pub(crate) async fn settle(&self, revision: u64) -> IoStatus {
        if !self.knows_reservations(revision).await {
            return IoStatus::Interrupted;
        }
        if self.ordered_is_stable().await && self.is_open() {
            IoStatus::Done
        } else {
            IoStatus::Interrupted
        }
    }

    /// Waits until everything that is ordered now is stable; false if the owner closes first.
    pub(crate) async fn ordered_is_stable(&self) -> bool {
        if !self.is_open() {
            // Nobody would wake who waits here.
            return false;
        }
        let mut pending = Vec::new();
        let when_stable = |slice: &mut Slice| {
            let last = Seq(slice.stream.next().0 - 1);
            (last > slice.stream.stable()).then(|| slice.when_stable(last))
        };
        // What is not stable needs attention.
        for index in self.slices.attended() {
            pending.extend(self.slices.with(index, when_stable).flatten());
        }
        for stable in pending {
            if stable.await.is_err() {
                return false;
            }
        }
        true
    }
}
