//! Sessions of one unit as their initiators see them, and the oracles that judge each PDU.
//!
//! The shell around the target's state machines is imitated without sockets and without a
//! runtime: commands run when the input says so, in any order, so that aborts, resets, logouts and
//! the end of a connection find them in every state.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use futures::future::{LocalBoxFuture, poll_fn};
use holdfast_iscsi::TargetSummary;
use holdfast_iscsi::login::{Login, Step};
use holdfast_iscsi::pdu::framing::{Decoder, Digests, Frame};
use holdfast_iscsi::pdu::{FINAL, Pdu, RESERVED_TAG};
use holdfast_iscsi::session::{Action, Front, Session, TaskId};
use holdfast_iscsi::text::Writer;
use holdfast_scsi::{Admission, Attachment, Completion, Nexus, OutcomeUnknown, Sense, TaskAborter};

use crate::chap::{TARGET, TestPolicy};
use crate::unit::{Bench, judge};

/// Commands that a session may have outstanding.
pub const WINDOW: u32 = 8;

/// The byte that every block holds at this place, if it holds anything: never above 80, so that
/// memory which the allocator filled with something else shows.
pub const fn pattern(offset: usize) -> u8 {
    let place = offset % 512;
    1 + ((place * 7 + place / 256) % 80) as u8
}

/// Whether something has come to its end.
type Flag = Rc<Cell<bool>>;

/// What an initiator negotiates.
#[derive(Clone, Copy, Default)]
pub struct Offer {
    /// Bits: header digest, data digest, no initial R2T, no immediate data, discovery.
    pub choice: u8,
    /// Chooses MaxRecvDataSegmentLength, MaxBurstLength and FirstBurstLength.
    pub lengths: u8,
}

struct SessionFront {
    attachment: Option<Attachment>,
}

impl Front for SessionFront {
    fn admit(&self, lun: u64, cdb: &[u8; 16]) -> Admission {
        match &self.attachment {
            Some(attachment) => attachment.admit(lun, cdb),
            None => Admission::Done(self.check_condition(Sense::UNIT_NOT_SUPPORTED)),
        }
    }

    fn check_condition(&self, sense: Sense) -> Completion {
        match &self.attachment {
            Some(attachment) => attachment.check_condition(sense),
            None => Completion::check(sense, false),
        }
    }

    fn send_targets(&self, name: Option<&str>) -> Vec<TargetSummary> {
        let portals = vec!["127.0.0.1:3260,1".to_owned(); 12];
        let all = ["iqn.2026-01.t:v", "iqn.2026-01.t:w"];
        let wanted = all
            .iter()
            .filter(|iqn| name.is_none_or(|name| name == **iqn));
        wanted
            .map(|iqn| TargetSummary {
                iqn: (*iqn).to_owned(),
                portals: portals.clone(),
            })
            .collect()
    }

    fn target(&self) -> Option<&str> {
        self.attachment.as_ref().map(|_| TARGET)
    }
}

/// A request to abort the commands of some nexuses, and whether that has been done.
type AbortRequest = (Vec<Nexus>, Flag);

/// Collects what PREEMPT AND ABORT asks for; [`World`] carries it out.
#[derive(Default)]
struct Aborter(RefCell<Vec<AbortRequest>>);

impl TaskAborter for Aborter {
    fn abort(&self, nexuses: Vec<Nexus>) -> LocalBoxFuture<'static, ()> {
        let done = Flag::default();
        self.0.borrow_mut().push((nexuses, done.clone()));
        Box::pin(poll_fn(move |_| {
            if done.get() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }))
    }
}

struct Running {
    task: TaskId,
    execution: LocalBoxFuture<'static, Result<Completion, OutcomeUnknown>>,
}

/// A reset that waits for other sessions.
struct Reset {
    ticket: u64,
    others: Vec<Flag>,
}

/// An R2T that has not been answered in full.
#[derive(Clone, Copy, Default)]
pub struct Asked {
    /// The command's tag.
    pub tag: u32,
    /// Target transfer tag.
    pub transfer_tag: u32,
    /// Offset of the data asked for.
    pub offset: u32,
    /// Bytes asked for.
    pub bytes: u32,
}

/// What an initiator knows of a command.
#[derive(Clone, Copy, Default)]
struct Sent {
    expected_bytes: u32,
    received: u32,
    data_number: u32,
    reads_medium: bool,
}

/// One session.
pub struct Peer {
    number: u8,
    session: Session,
    front: SessionFront,
    decoder: Decoder,
    send_bytes_max: usize,
    buffer: BytesMut,
    running: Vec<Running>,
    resets: Vec<Reset>,
    aborts: BTreeMap<u64, Flag>,
    next_ticket: u64,
    ended: bool,
    closed: bool,
    /// It reset the target: every session ends.
    cold: bool,
    logged_out: bool,
    sent: BTreeMap<u32, Sent>,
    status_number: u32,
    expected_command: u32,
    max_command: u32,
    /// Whether every byte that any session wrote followed [`pattern`], and no text was sent.
    pub pure: bool,
    /// Whether bytes were sent that were not looked at.
    pub unknown: bool,
    /// The last R2Ts.
    pub asked: Vec<Asked>,
    /// CmdSN for the next command.
    pub command_number: u32,
}

fn serial_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl Peer {
    fn log_in(bench: &Bench, number: u8, offer: Offer) -> Self {
        let discovery = offer.choice & 0x10 != 0;
        let mut pdu = Pdu::new(0x43);
        pdu.header[1] = 0x87;
        pdu.header[13] = number;
        // Close to where the numbers wrap.
        pdu.put_u32(24, u32::MAX - 3);
        pdu.put_u32(28, u32::MAX - 5);
        let mut writer = Writer::default();
        writer.put("InitiatorName", "iqn.2026-01.i:a");
        if discovery {
            writer.put("SessionType", "Discovery");
        } else {
            writer.put("TargetName", TARGET);
        }
        let yes = |bit: u8| if offer.choice & bit != 0 { "Yes" } else { "No" };
        let digest = |bit: u8| {
            if offer.choice & bit != 0 {
                "CRC32C"
            } else {
                "None"
            }
        };
        let length =
            |shift: u8| ["512", "1024", "4096", "65536"][usize::from(offer.lengths >> shift & 3)];
        for (key, value) in [
            ("HeaderDigest", digest(1)),
            ("DataDigest", digest(2)),
            ("InitialR2T", yes(4)),
            ("ImmediateData", yes(8)),
            ("MaxRecvDataSegmentLength", length(0)),
            ("MaxBurstLength", length(2)),
            ("FirstBurstLength", length(4)),
        ] {
            writer.put(key, value);
        }
        pdu.data = writer.finish();
        let Step::Established(login) = Login::default().handle(&pdu, &TestPolicy::new(0)) else {
            panic!("a correct login is accepted");
        };
        let session = Session::new(&login, WINDOW);
        let attachment = (!discovery).then(|| bench.attach(number));
        Self {
            number,
            front: SessionFront { attachment },
            decoder: Decoder {
                digests: login.parameters.digests,
                data_bytes_max: holdfast_iscsi::negotiation::RECEIVE_BYTES_MAX as usize,
            },
            send_bytes_max: login.parameters.send_bytes_max as usize,
            buffer: BytesMut::new(),
            running: Vec::new(),
            resets: Vec::new(),
            aborts: BTreeMap::new(),
            next_ticket: 0,
            ended: false,
            closed: false,
            cold: false,
            logged_out: false,
            sent: BTreeMap::new(),
            status_number: login.status_number,
            expected_command: login.command_number,
            max_command: session.max_command(),
            pure: true,
            unknown: false,
            asked: Vec::new(),
            command_number: login.command_number,
            session,
        }
    }

    /// The digests of the connection.
    pub fn digests(&self) -> Digests {
        self.decoder.digests
    }

    /// Notes a command that is about to be sent.
    pub fn note(&mut self, tag: u32, expected_bytes: u32, opcode: u8, twice: bool) {
        let reads_medium = matches!(opcode, 0x08 | 0x28 | 0xa8 | 0x88) && !twice;
        let sent = self.sent.entry(tag).or_default();
        sent.expected_bytes = sent.expected_bytes.max(expected_bytes);
        sent.reads_medium = reads_medium;
    }

    fn take(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        while !self.ended && !self.closed {
            match self.decoder.decode(&mut self.buffer) {
                Ok(Some(pdu)) => {
                    let outcome = self.session.receive(pdu, &self.front);
                    self.act();
                    self.ended |= outcome.is_err();
                }
                Ok(None) => break,
                Err(_) => self.ended = true,
            }
        }
    }

    fn act(&mut self) {
        for action in self.session.take_actions() {
            match action {
                Action::Send(pdu) => self.judge(pdu),
                Action::Execute {
                    task,
                    command,
                    data,
                    data_in_bytes,
                } => {
                    assert!(data_in_bytes == 0 || data.is_empty());
                    let attachment = self.front.attachment.as_ref();
                    let attachment = attachment.expect("a discovery session runs nothing");
                    let execution = attachment.execute(command, data);
                    self.running.push(Running { task, execution });
                }
                Action::ResetUnit { ticket } => self.resets.push(Reset {
                    ticket,
                    others: Vec::new(),
                }),
                Action::Drained { ticket } => {
                    if let Some(done) = self.aborts.remove(&ticket) {
                        done.set(true);
                    }
                }
                Action::DropTarget => (self.cold, self.closed) = (true, true),
                Action::Close => self.closed = true,
            }
        }
        assert!(self.running.len() <= self.session.outstanding());
    }

    /// What every PDU of the target must be like.
    fn judge(&mut self, pdu: Pdu) {
        let (opcode, tag) = (pdu.header[0], pdu.task_tag());
        let sent = self.sent.entry(tag).or_default();
        let is_final = pdu.header[1] & FINAL != 0;
        let takes_status = match opcode {
            0x25 => {
                let (number, offset) = (pdu.u32_at(36), pdu.u32_at(40));
                let length = pdu.data.len() as u32;
                assert_eq!((offset, number), (sent.received, sent.data_number));
                sent.received += length;
                sent.data_number += 1;
                let announced = self.unknown || sent.received <= sent.expected_bytes;
                assert!(announced, "more than was announced");
                if self.pure && sent.reads_medium {
                    let written = (offset as usize..).zip(&pdu.data[..]);
                    for (at, byte) in written {
                        assert!(
                            *byte == 0 || *byte == pattern(at),
                            "a byte that nobody wrote"
                        );
                    }
                }
                pdu.header[1] & 1 != 0
            }
            0x31 => {
                let (offset, bytes) = (pdu.u32_at(40), pdu.u32_at(44));
                let announced = self.unknown || offset + bytes <= sent.expected_bytes;
                assert!(bytes > 0 && announced);
                self.asked.push(Asked {
                    tag,
                    transfer_tag: pdu.u32_at(20),
                    offset,
                    bytes,
                });
                false
            }
            0x20 => tag != RESERVED_TAG,
            0x21 | 0x22 | 0x24 | 0x26 | 0x32 | 0x3f => true,
            other => panic!("opcode {other:#x}"),
        };
        if opcode == 0x21 || (opcode == 0x25 && takes_status) {
            (sent.received, sent.data_number) = (0, 0);
        }
        match opcode {
            0x21 => assert!(pdu.data.len() <= 2 + 252),
            0x3f => assert_eq!(pdu.data.len(), 48),
            0x24 if self.pure => assert!(pdu.data.len() <= self.send_bytes_max.max(8192)),
            _ if self.pure => assert!(pdu.data.len() <= self.send_bytes_max),
            _ => {}
        }
        assert!(!self.logged_out, "{opcode:#x} after the logout");
        if opcode == 0x26 && pdu.header[2] == 0 {
            assert!(self.running.is_empty(), "logged out with commands running");
            self.logged_out = true;
        }
        assert!(is_final || matches!(opcode, 0x25 | 0x24));
        let (status, expected, max) = (pdu.u32_at(24), pdu.u32_at(28), pdu.u32_at(32));
        if takes_status || opcode != 0x25 {
            assert_eq!(status, self.status_number, "StatSN of {opcode:#x}");
        }
        self.status_number = self.status_number.wrapping_add(u32::from(takes_status));
        assert!(
            !serial_before(expected, self.expected_command),
            "ExpCmdSN decreases"
        );
        assert!(!serial_before(max, self.max_command), "MaxCmdSN decreases");
        assert!(max.wrapping_sub(expected).wrapping_add(1) <= WINDOW);
        (self.expected_command, self.max_command) = (expected, max);
        let frame = Frame::new(pdu, self.decoder.digests);
        assert!(frame.remaining().is_multiple_of(4));
    }

    /// Lets a command run as far as it can; answers whether it is done.
    fn run(&mut self, index: usize) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let Some(running) = self.running.get_mut(index) else {
            return false;
        };
        let Poll::Ready(completion) = running.execution.as_mut().poll(&mut context) else {
            return false;
        };
        let completion = completion.expect("a volume in memory knows what it did");
        let task = self.running.remove(index).task;
        judge(&completion);
        if !self.ended {
            self.session.complete(task, completion);
            self.act();
        }
        true
    }
}

/// The unit and the sessions of its initiators.
pub struct World {
    bench: Bench,
    aborter: Rc<Aborter>,
    /// The sessions.
    pub peers: Vec<Peer>,
    requests: Vec<(Vec<Flag>, Flag)>,
}

impl World {
    /// Everybody logs in.
    pub fn new(large_blocks: bool, offers: &[Offer]) -> Self {
        let bench = Bench::new(large_blocks);
        let aborter = Rc::new(Aborter::default());
        bench.unit.set_aborter(aborter.clone());
        let numbered = (0..).zip(offers);
        let peers = numbered
            .map(|(number, offer)| Peer::log_in(&bench, number, *offer))
            .collect();
        Self {
            bench,
            aborter,
            peers,
            requests: Vec::new(),
        }
    }

    /// Changes the capacity.
    pub fn resize(&self, capacity_bytes: u64) {
        self.bench.device.resize(capacity_bytes);
    }

    /// Bytes of an initiator, in pieces of so many.
    pub fn feed(&mut self, who: usize, bytes: &[u8], cut: usize) {
        for piece in bytes.chunks(cut.max(1)) {
            self.peers[who].take(piece);
        }
        self.settle();
    }

    /// Lets one command of a session run.
    pub fn run(&mut self, who: usize, index: usize) {
        self.peers[who].run(index);
        self.settle();
    }

    /// The target asks for a sign of life, for a logout, or drops the connection.
    pub fn disturb(&mut self, who: usize, how: u8) {
        let peer = &mut self.peers[who];
        if peer.ended || peer.closed {
            return;
        }
        match how % 3 {
            0 => peer.session.ping(),
            1 => peer.session.request_logout(3),
            _ => peer.session.drop_connection(),
        }
        peer.act();
        self.settle();
    }

    /// A new login of the same nexus: what the old session had ends first.
    pub fn log_in_again(&mut self, who: usize, offer: Offer) {
        self.peers[who].ended = true;
        self.settle();
        self.finish(Some(who));
        let peer = &mut self.peers[who];
        let (number, pure) = (peer.number, peer.pure);
        // The unit forgets the nexus before its place becomes free.
        peer.front.attachment = None;
        *peer = Peer::log_in(&self.bench, number, offer);
        peer.pure = pure;
    }

    /// Everything that was begun comes to its end, however the sessions end.
    pub fn end(mut self) {
        self.finish(None);
    }

    fn finish(&mut self, of: Option<usize>) {
        loop {
            let peers = self.peers.iter().enumerate();
            let mut concerned = peers.filter(|(who, _)| of.is_none_or(|of| of == *who));
            if concerned.all(|(_, peer)| peer.running.is_empty()) {
                return;
            }
            let mut moved = false;
            for who in 0..self.peers.len() {
                for index in (0..self.peers[who].running.len()).rev() {
                    moved |= self.peers[who].run(index);
                }
            }
            moved |= self.settle();
            assert!(moved, "commands wait for one another");
        }
    }

    /// Carries out what sessions want of one another.
    fn settle(&mut self) -> bool {
        let mut ever = false;
        loop {
            let mut moved = false;
            if self.peers.iter().any(|peer| peer.cold) {
                for peer in &mut self.peers {
                    peer.ended |= !std::mem::take(&mut peer.cold);
                }
            }
            let asked = std::mem::take(&mut *self.aborter.0.borrow_mut());
            for (nexuses, done) in asked {
                let flags = self.abort(|peer| {
                    let attachment = peer.front.attachment.as_ref();
                    attachment.is_some_and(|attachment| nexuses.contains(attachment.nexus()))
                });
                self.requests.push((flags, done));
                moved = true;
            }
            for who in 0..self.peers.len() {
                let fresh = self.peers[who]
                    .resets
                    .iter()
                    .any(|reset| reset.others.is_empty());
                if fresh {
                    let others = self.abort(|peer| usize::from(peer.number) != who);
                    let done = Rc::new(Cell::new(true));
                    for reset in &mut self.peers[who].resets {
                        if reset.others.is_empty() {
                            reset.others.push(done.clone());
                            reset.others.extend(others.iter().cloned());
                        }
                    }
                }
                moved |= self.peer_settles(who);
            }
            let gone = |requests: &mut Vec<(Vec<Flag>, Flag)>| {
                let before = requests.len();
                requests.retain(|(flags, done)| {
                    let all = flags.iter().all(|flag| flag.get());
                    done.set(all);
                    !all
                });
                before != requests.len()
            };
            moved |= gone(&mut self.requests);
            ever |= moved;
            if !moved {
                return ever;
            }
        }
    }

    fn peer_settles(&mut self, who: usize) -> bool {
        let mut moved = false;
        let peer = &mut self.peers[who];
        if peer.ended {
            // As the connection's end does: resets are dropped, commands drain.
            peer.resets.clear();
            if peer.running.is_empty() {
                moved |= !peer.aborts.is_empty();
                for (_, done) in std::mem::take(&mut peer.aborts) {
                    done.set(true);
                }
            }
            return moved;
        }
        let is_done = |reset: &mut Reset| reset.others.iter().all(|flag| flag.get());
        let done: Vec<Reset> = peer.resets.extract_if(.., is_done).collect();
        for reset in done {
            if let Some(attachment) = &peer.front.attachment {
                let unit = attachment.unit().clone();
                let nexus = attachment.nexus().clone();
                let resetting = std::pin::pin!(unit.reset(&nexus));
                let outcome = resetting.poll(&mut Context::from_waker(Waker::noop()));
                assert!(outcome.is_ready(), "a local reset does not wait");
            }
            peer.session.reset_done(reset.ticket);
            peer.act();
            moved = true;
        }
        moved
    }

    fn abort(&mut self, concerned: impl Fn(&Peer) -> bool) -> Vec<Flag> {
        let mut flags = Vec::new();
        for peer in self.peers.iter_mut().filter(|peer| concerned(peer)) {
            if peer.front.attachment.is_none() {
                continue;
            }
            let done = Flag::default();
            peer.next_ticket += 1;
            peer.aborts.insert(peer.next_ticket, done.clone());
            flags.push(done);
            if !peer.ended {
                peer.session.abort_for_others(peer.next_ticket);
                peer.act();
            }
        }
        flags
    }
}
