//! Seeing one operation through: attempts at whoever owns the volume, until there is a definite
//! answer, the path it came by has ended, or waiting is useless.
//!
//! | what ends it | nothing was done | open (a write was sent, and no answer says) |
//! |---|---|---|
//! | a definite answer | that answer | that answer: a repetition finds out |
//! | patience ends | busy | unknown |
//! | this node is cut off from the cluster | unreachable | unknown |
//! | the path has ended | path ended, at once | path ended, once the owner can order it no more |
//!
//! A read never is open. "Busy" and "unreachable" are promises: what was asked for did not happen
//! and will not.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{Either, LocalBoxFuture, Shared, select};
use holdfast_config::state::{Owner as OwnerRecord, VolumeRecord};
use holdfast_path::Path;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Frame, Instant, Service};
use holdfast_wire::volume::{Io, IoKind, IoReply, IoStatus};
use holdfast_wire::{View, VolumeId};
use prost::Message;

use super::stamps::Vouch;
use super::{AccessError, IoError, Portal};
use crate::owner::{HELD_FOR, SHOWN_AFTER};

/// One request to an owner; a slow one is asked again and joins itself there.
const CALL_LIMIT: Duration = Duration::from_millis(4000);
/// How long a portal tries before it tells the initiator to come again. Initiators of every
/// kind wait at least 30 s for a command.
const PATIENCE: Duration = Duration::from_secs(20);
const BARRIER_LIMIT: Duration = Duration::from_millis(2000);
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How often operations that take long are looked after.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Evidence of this age is renewed while the owner has not answered.
const RENEWED_AFTER: Duration = Duration::from_millis(200);
const _: () = assert!(RENEWED_AFTER.as_millis() + 2 * TICK.as_millis() < HELD_FOR.as_millis());
/// How long newer evidence is waited for before the operation's own patience is looked at.
const RENEWAL_LIMIT: Duration = Duration::from_millis(1000);
/// Limit of a message that only tells an owner of a path.
const PATH_LIMIT: Duration = Duration::from_millis(500);
/// The owner orders nothing on evidence that is older than this, seen from here, and what it has
/// ordered on such evidence nobody misses.
const FORGOTTEN_AFTER: Duration = Duration::from_millis(950);
const _: () = assert!(HELD_FOR.as_millis() < FORGOTTEN_AFTER.as_millis());
const _: () = assert!(SHOWN_AFTER.as_millis() < FORGOTTEN_AFTER.as_millis());
/// A node that has heard nothing of a majority for so long is cut off: a leader that has died
/// is replaced before, in 850 ms.
pub const CUT_OFF_AFTER: Duration = Duration::from_millis(1300);
/// Ticks for which it has to last: a process that stood still finds itself out of touch when it
/// wakes, and the news that say otherwise unread.
pub(super) const CUT_OFF_TICKS: u32 = 4;
/// A node that is cut off gives an owner that may be on its side this long to answer.
const CUT_OFF_PATIENCE: Duration = Duration::from_millis(1000);

/// What is known of an operation that has no definite answer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// No attempt has done anything, or will.
    NotDone,
    /// An attempt may have done it.
    Open,
}

/// What came of one attempt.
enum Attempt {
    Answered(IoReply, Bytes),
    /// Nobody could be asked.
    NotSent,
    /// No answer came.
    Silence,
    /// This node is cut off, and no answer came for long.
    CutOff,
    PathEnded,
}

/// An end of a path that is being told to an owner.
pub(super) type Release = Shared<LocalBoxFuture<'static, ()>>;

fn changes_data(kind: IoKind) -> bool {
    match kind {
        IoKind::Write | IoKind::Zero | IoKind::CompareAndWrite => true,
        IoKind::Read
        | IoKind::Map
        | IoKind::Settle
        | IoKind::Learn
        | IoKind::Hold
        | IoKind::Release
        | IoKind::Unknown => false,
    }
}

/// What an initiator is told when a portal stops trying.
const fn out_of_patience(fate: Fate, changes: bool) -> IoError {
    match fate {
        Fate::Open if changes => IoError::Unknown,
        Fate::Open | Fate::NotDone => IoError::Busy,
    }
}

/// The same on a node that is cut off.
const fn cut_off(fate: Fate, changes: bool) -> IoError {
    match fate {
        Fate::Open if changes => IoError::Unknown,
        Fate::Open | Fate::NotDone => IoError::Unreachable,
    }
}

impl Portal {
    /// See the module's header.
    pub(super) async fn see_through(
        self: &Rc<Self>,
        volume: VolumeId,
        mut io: Io,
        payload: Bytes,
        path: &Rc<Path>,
    ) -> Result<Bytes, AccessError> {
        let runtime = &self.context.runtime;
        let started = runtime.now();
        let give_up = started + PATIENCE;
        let changes = changes_data(io.kind());
        let mut watch = self.context.config.watch();
        let mut fate = Fate::NotDone;
        let mut renewed = false;
        // Whom an unanswered change was sent to.
        let mut asked: Vec<OwnerRecord> = Vec::new();
        io.path = path.number();
        loop {
            watch.mark_unchanged();
            io.floor = self.lowest_under_way().unwrap_or(io.operation);
            let (attempt, office) = self.attempt(volume, &mut io, payload.clone(), path).await?;
            match attempt {
                Attempt::Answered(reply, data) => match reply.status() {
                    IoStatus::Done => return Ok(data),
                    IoStatus::Full => return Err(IoError::Full.into()),
                    IoStatus::Damaged => return Err(IoError::Damaged.into()),
                    IoStatus::Invalid => return Err(IoError::Invalid.into()),
                    IoStatus::Miscompare => return Err(IoError::Miscompare(reply.offset).into()),
                    IoStatus::Gone => return Err(IoError::Gone.into()),
                    IoStatus::Uncertain => return Err(out_of_patience(Fate::Open, changes).into()),
                    IoStatus::Reserved => return Err(AccessError::Reserved),
                    IoStatus::Stale => {
                        let Some((owner, _)) = office else { continue };
                        let was_renewed = std::mem::replace(&mut renewed, true);
                        let renewing = self.renew_evidence(owner, path);
                        let outcome = runtime.timeout(RENEWAL_LIMIT, renewing).await;
                        if outcome == Some(Ok(())) && !was_renewed {
                            continue;
                        }
                    }
                    IoStatus::Interrupted | IoStatus::Unknown => fate = Fate::Open,
                    IoStatus::NotOwner | IoStatus::Over => {}
                },
                Attempt::NotSent => {}
                Attempt::Silence => {
                    fate = Fate::Open;
                    asked.extend(office.map(|(owner, _)| owner));
                }
                Attempt::CutOff => return Err(cut_off(Fate::Open, changes).into()),
                Attempt::PathEnded => asked.extend(office.map(|(owner, _)| owner)),
            }
            if path.has_ended() {
                asked.sort();
                asked.dedup();
                for owner in asked.into_iter().filter(|_| changes) {
                    self.release(volume, owner, path).await;
                }
                return Err(IoError::PathEnded.into());
            }
            let now = runtime.now();
            if now >= give_up {
                return Err(out_of_patience(fate, changes).into());
            }
            let unheard = office.is_none_or(|(owner, _)| self.is_unheard(owner, &io));
            if self.is_cut_off() && unheard && now >= started + CUT_OFF_PATIENCE {
                return Err(cut_off(fate, changes).into());
            }
            let (news, ended) = (pin!(watch.changed()), pin!(path.ended()));
            let _ = runtime.timeout(RETRY_PAUSE, select(news, ended)).await;
        }
    }

    /// Who owns the volume, and in which view, as far as this node knows. A volume that it does
    /// not know may have been created a moment ago through another node, so the config group is
    /// asked once.
    async fn office(&self, volume: VolumeId) -> Result<Option<(OwnerRecord, View)>, IoError> {
        let config = &self.context.config;
        let office = |record: &VolumeRecord| record.owner.map(|owner| (owner, record.view));
        if let Some(record) = config.state().volumes.get(&volume) {
            return Ok(office(record));
        }
        if !config.read_barrier(BARRIER_LIMIT).await {
            return Ok(None);
        }
        config
            .state()
            .volumes
            .get(&volume)
            .map(office)
            .ok_or(IoError::Gone)
    }

    /// One attempt, and whom it asked.
    async fn attempt(
        self: &Rc<Self>,
        volume: VolumeId,
        io: &mut Io,
        payload: Bytes,
        path: &Rc<Path>,
    ) -> Result<(Attempt, Option<(OwnerRecord, View)>), IoError> {
        if path.has_ended() {
            return Ok((Attempt::PathEnded, None));
        }
        let office = match select(pin!(self.office(volume)), pin!(path.ended())).await {
            Either::Left((office, _)) => office?,
            Either::Right(_) => return Ok((Attempt::PathEnded, None)),
        };
        let Some((owner, view)) = office else {
            return Ok((Attempt::NotSent, None));
        };
        io.view = view.0;
        if io.first_view == 0 {
            (io.first_view, io.first_floor) = (view.0, io.floor);
        }
        let changes = changes_data(io.kind());
        if changes && self.needs_stamp(owner) {
            self.hold(volume, (owner, view), path).await;
        }
        self.put_vouch(io, owner, path);
        let started = self.context.runtime.now();
        let mut asking = self
            .clone()
            .ask(volume, owner, io.clone(), payload)
            .boxed_local();
        loop {
            let tick = self.tick.notified();
            let (tick, ended) = (pin!(tick), pin!(path.ended()));
            let interrupted = match select(&mut asking, select(ended, tick)).await {
                Either::Left((answer, _)) => return Ok((answer, office)),
                Either::Right((Either::Left(_), _)) => Some(Attempt::PathEnded),
                Either::Right((Either::Right(_), _)) => None,
            };
            let waited = self.context.runtime.now().saturating_since(started);
            let cut_off = self.is_cut_off();
            let useless = cut_off && waited >= CUT_OFF_PATIENCE && self.is_unheard(owner, io);
            if let Some(end) = interrupted.or(useless.then_some(Attempt::CutOff)) {
                if changes {
                    // What it has begun counts among what the owner has in flight to its end.
                    let left = asking.map(drop);
                    self.context.runtime.spawn("portal-abandoned", left);
                }
                return Ok((end, office));
            }
            if waited >= RENEWED_AFTER && (changes || cut_off) {
                self.keep_vouching(volume, path);
            }
        }
    }

    /// Whether the owner has not answered anything for so long that waiting is useless on a node
    /// that is cut off. An owner on this node is judged by its leases.
    fn is_unheard(&self, owner: OwnerRecord, io: &Io) -> bool {
        if owner.node == self.context.node() {
            let owner = self.owners.borrow().get(&VolumeId(io.volume)).cloned();
            return owner.is_none_or(|owner| !owner.is_leased(io.offset, io.length));
        }
        let now = self.context.runtime.now();
        let heard = self.stamps.borrow().heard(owner);
        heard.is_none_or(|at| now.saturating_since(at) >= CUT_OFF_PATIENCE)
    }

    /// Asks an owner, this node or another.
    async fn ask(
        self: Rc<Self>,
        volume: VolumeId,
        owner: OwnerRecord,
        io: Io,
        payload: Bytes,
    ) -> Attempt {
        match self.send(volume, owner, &io, payload, CALL_LIMIT).await {
            Attempt::Answered(reply, data)
                if io.kind() == IoKind::Read
                    && reply.status() == IoStatus::Done
                    && data.len() as u64 != io.length =>
            {
                Attempt::Silence
            }
            attempt => attempt,
        }
    }

    /// Sends one message to an owner, on this node or another.
    async fn send(
        &self,
        volume: VolumeId,
        owner: OwnerRecord,
        io: &Io,
        payload: Bytes,
        limit: Duration,
    ) -> Attempt {
        if owner.node == self.context.node() {
            let owner = self.owners.borrow().get(&volume).cloned();
            let Some(owner) = owner else {
                return Attempt::NotSent;
            };
            let (status, offset, data) = owner.io(io, payload).await;
            let reply = IoReply {
                status: status as i32,
                offset,
                stamp: 0,
            };
            return Attempt::Answered(reply, data);
        }
        if self.context.rpc.reachable(owner.node).is_none() {
            return Attempt::NotSent;
        }
        let frame = Frame::with_payload(io.encode_to_vec(), payload);
        match self.call(owner, frame, limit).await {
            Some((reply, data)) => Attempt::Answered(reply, data),
            None => Attempt::Silence,
        }
    }

    /// Calls another node's owners, and notes what their clock says.
    async fn call(
        &self,
        owner: OwnerRecord,
        frame: Frame,
        limit: Duration,
    ) -> Option<(IoReply, Bytes)> {
        let sent = self.context.runtime.now();
        let call = self
            .context
            .rpc
            .call(owner.node, Service::Volume, frame, limit);
        let answer = call.await.ok()?;
        let reply = IoReply::decode(answer.header).ok()?;
        if reply.stamp > 0 {
            let received = self.context.runtime.now();
            let mut stamps = self.stamps.borrow_mut();
            stamps.take(owner, sent, received, reply.stamp);
        }
        Some((reply, answer.payload))
    }

    /// When the host was last known to hold on to the path, by this node's clock.
    fn held_at(&self, path: &Path) -> Option<Instant> {
        // In this order: see `Path::unconfirmed_for`.
        let now = self.context.runtime.now();
        let past = path.unconfirmed_for()?;
        if planted::is_active(Bug::AssumeHeld) {
            return Some(now);
        }
        let past = u64::try_from(past.as_nanos()).unwrap_or(u64::MAX);
        Some(Instant::from_nanos(now.as_nanos().saturating_sub(past)))
    }

    /// What this node can tell the owner of the path.
    fn vouch(&self, owner: OwnerRecord, path: &Path) -> Option<Vouch> {
        let held_at = self.held_at(path)?;
        let now = self.context.runtime.now();
        if owner.node == self.context.node() {
            // The owner reads the same clock.
            return Some(Vouch {
                stamp: held_at.as_nanos(),
                held_after_stamp: 0,
            });
        }
        self.stamps.borrow().vouch(owner, now, held_at)
    }

    fn put_vouch(&self, io: &mut Io, owner: OwnerRecord, path: &Path) {
        let vouch = self.vouch(owner, path);
        (io.stamp, io.held_after_stamp) =
            vouch.map_or((0, 0), |vouch| (vouch.stamp, vouch.held_after_stamp));
    }

    fn needs_stamp(&self, owner: OwnerRecord) -> bool {
        let now = self.context.runtime.now();
        owner.node != self.context.node() && !self.stamps.borrow().has(owner, now)
    }

    /// Waits for evidence that the owner will believe.
    async fn renew_evidence(&self, owner: OwnerRecord, path: &Path) -> Result<(), IoError> {
        let now = self.context.runtime.now();
        let trusted_from = self.stamps.borrow().trusted_from(owner, now);
        let trusted_for = trusted_from.map_or(RENEWED_AFTER, |from| now.saturating_since(from));
        let confirmed = path.confirm(trusted_for.min(RENEWED_AFTER)).await;
        confirmed.map_err(|_| IoError::PathEnded)
    }

    /// Tells an owner what is known of a path; the answer brings the owner's clock.
    async fn hold(&self, volume: VolumeId, (owner, view): (OwnerRecord, View), path: &Path) {
        let mut io = self.request(IoKind::Hold, volume, 0, 0);
        (io.view, io.path) = (view.0, path.number());
        self.put_vouch(&mut io, owner, path);
        // Whether it arrived shows with the next attempt.
        let held = self.send(volume, owner, &io, Bytes::new(), PATH_LIMIT);
        held.await;
    }

    /// Renews the evidence that the owner has of a path while its answer is awaited: what waits
    /// there for long keeps its place.
    fn keep_vouching(self: &Rc<Self>, volume: VolumeId, path: &Rc<Path>) {
        if path.number() == 0 || !self.vouching.borrow_mut().insert((volume, path.number())) {
            return;
        }
        let (portal, path) = (self.clone(), path.clone());
        self.context.runtime.spawn("portal-vouch", async move {
            let confirmed = path.confirm(RENEWED_AFTER).await;
            if confirmed.is_ok()
                && let Ok(Some(office)) = portal.office(volume).await
            {
                portal.hold(volume, office, &path).await;
            }
            let key = (volume, path.number());
            portal.vouching.borrow_mut().remove(&key);
        });
    }

    /// Resolves when nothing that came by the path, which has ended, will be ordered any more
    /// by this owner: it has said so, or the evidence that it has is too old.
    async fn release(self: &Rc<Self>, volume: VolumeId, owner: OwnerRecord, path: &Rc<Path>) {
        let key = (volume, path.number(), owner);
        let known = self.releases.borrow().get(&key).cloned();
        let release = match known {
            Some(release) => release,
            None => {
                let (portal, path) = (self.clone(), path.clone());
                let release = async move {
                    portal.tell_end(volume, owner, &path).await;
                    portal.releases.borrow_mut().remove(&key);
                };
                let release = release.boxed_local().shared();
                self.releases.borrow_mut().insert(key, release.clone());
                release
            }
        };
        release.await;
    }

    async fn tell_end(&self, volume: VolumeId, owner: OwnerRecord, path: &Path) {
        let past = path.unconfirmed_for().unwrap_or_default();
        let forgotten = self.context.runtime.now() + FORGOTTEN_AFTER.saturating_sub(past);
        let mut io = self.request(IoKind::Release, volume, 0, 0);
        io.path = path.number();
        let told = self
            .send(volume, owner, &io, Bytes::new(), PATH_LIMIT)
            .await;
        let done = matches!(&told, Attempt::Answered(reply, _) if reply.status() == IoStatus::Done);
        // An owner on this node that is none any more orders nothing.
        if !done && owner.node != self.context.node() {
            self.context.runtime.sleep_until(forgotten).await;
        }
    }
}
