//! What stands before the messages of this module on the wire. Little-endian:
//!
//! ```text
//!  any frame   version u8, kind u8, service u8, zero u8, id u64
//!  relayed     kind of the message u8, place u8, hops u8, zero u8,
//!              origin u64, its start u64, target's start u64, hops * node u64
//!  statements  * (node u64, start u64, sequence u64, peers u32, peers * (node u64, start u64))
//! ```
//!
//! Relayed frames and statements came with the second version of the product; the first one
//! drops them.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::routes::{HOPS_MAX, Statement};
use super::{Kind, Service};
use crate::links::{Incarnation, NodeId};

const VERSION: u8 = 1;
pub(super) const PREFIX_BYTES: usize = 12;
const RELAYED: u8 = 4;
const STATEMENTS: u8 = 5;
const ENVELOPE_BYTES: usize = 28;
/// Links of one node that are taken from a frame: more than any cluster has nodes.
const PEERS_MAX: usize = 4096;

/// What a frame is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Prefix {
    /// A message of the peer it came from.
    Message(Message),
    /// A message that is passed on.
    Relayed(Message, Envelope),
    /// What nodes state about their links.
    Statements(Vec<Statement>),
}

/// The head of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) service: Service,
    pub(super) id: u64,
}

/// From whom to whom, and over whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) origin: NodeId,
    pub(super) origin_incarnation: Incarnation,
    /// The start that it is for: another one must not get it.
    pub(super) target_incarnation: Incarnation,
    /// The nodes on the way; the last one is the target.
    pub(super) path: Vec<NodeId>,
    /// Which of them has the frame, or is to get it next.
    pub(super) place: usize,
}

impl Envelope {
    /// The way back to the origin: the nodes on the way in reverse, then the origin.
    pub(super) fn way_back(&self) -> Vec<NodeId> {
        let relays = self.path.iter().rev().skip(1).copied();
        relays.chain([self.origin]).collect()
    }
}

impl Message {
    /// The header of a frame with this message.
    pub(super) fn header(self, body: &[u8]) -> Bytes {
        let mut header = BytesMut::with_capacity(PREFIX_BYTES + body.len());
        put_prefix(&mut header, self.kind as u8, self.service as u8, self.id);
        header.put_slice(body);
        header.freeze()
    }

    /// The header of a frame with this message that others pass on.
    pub(super) fn relayed_header(self, envelope: &Envelope, body: &[u8]) -> Bytes {
        let bytes = PREFIX_BYTES + ENVELOPE_BYTES + envelope.path.len() * 8 + body.len();
        let mut header = BytesMut::with_capacity(bytes);
        put_prefix(&mut header, RELAYED, self.service as u8, self.id);
        let hops = u8::try_from(envelope.path.len()).expect("ways are short");
        let place = u8::try_from(envelope.place).expect("a place on the way");
        header.put_slice(&[self.kind as u8, place, hops, 0]);
        header.put_u64_le(envelope.origin.0);
        header.put_u64_le(envelope.origin_incarnation.0);
        header.put_u64_le(envelope.target_incarnation.0);
        for node in &envelope.path {
            header.put_u64_le(node.0);
        }
        header.put_slice(body);
        header.freeze()
    }
}

/// The header of a frame with statements.
pub(super) fn statements_header<'a>(statements: impl Iterator<Item = &'a Statement>) -> Bytes {
    let mut header = BytesMut::new();
    put_prefix(&mut header, STATEMENTS, 0, 0);
    for statement in statements {
        header.put_u64_le(statement.node.0);
        header.put_u64_le(statement.incarnation.0);
        header.put_u64_le(statement.sequence);
        header.put_u32_le(u32::try_from(statement.peers.len()).expect("nodes fit in memory"));
        for (peer, incarnation) in &statement.peers {
            header.put_u64_le(peer.0);
            header.put_u64_le(incarnation.0);
        }
    }
    header.freeze()
}

fn put_prefix(header: &mut BytesMut, kind: u8, service: u8, id: u64) {
    header.put_slice(&[VERSION, kind, service, 0]);
    header.put_u64_le(id);
}

/// Takes the prefix off a frame's header; `None` if it is of an unknown form or version.
pub(super) fn split(header: &mut Bytes) -> Option<Prefix> {
    if header.len() < PREFIX_BYTES || header.get_u8() != VERSION {
        return None;
    }
    let (kind, service) = (header.get_u8(), header.get_u8());
    header.advance(1);
    let id = header.get_u64_le();
    match kind {
        STATEMENTS => read_statements(header).map(Prefix::Statements),
        RELAYED => {
            let service = Service::from_byte(service)?;
            let (kind, envelope) = read_envelope(header)?;
            Some(Prefix::Relayed(Message { kind, service, id }, envelope))
        }
        kind => Some(Prefix::Message(Message {
            kind: Kind::from_byte(kind)?,
            service: Service::from_byte(service)?,
            id,
        })),
    }
}

fn read_envelope(header: &mut Bytes) -> Option<(Kind, Envelope)> {
    if header.len() < ENVELOPE_BYTES {
        return None;
    }
    let kind = Kind::from_byte(header.get_u8())?;
    let (place, hops) = (usize::from(header.get_u8()), usize::from(header.get_u8()));
    header.advance(1);
    let origin = NodeId(header.get_u64_le());
    let origin_incarnation = Incarnation(header.get_u64_le());
    let target_incarnation = Incarnation(header.get_u64_le());
    if hops == 0 || hops > HOPS_MAX || place >= hops || header.len() < hops * 8 {
        return None;
    }
    let path = (0..hops).map(|_| NodeId(header.get_u64_le())).collect();
    let envelope = Envelope {
        origin,
        origin_incarnation,
        target_incarnation,
        path,
        place,
    };
    Some((kind, envelope))
}

fn read_statements(header: &mut Bytes) -> Option<Vec<Statement>> {
    let mut statements = Vec::new();
    while !header.is_empty() {
        if header.len() < 28 {
            return None;
        }
        let node = NodeId(header.get_u64_le());
        let incarnation = Incarnation(header.get_u64_le());
        let sequence = header.get_u64_le();
        let count = header.get_u32_le() as usize;
        if count > PEERS_MAX || header.len() < count * 16 {
            return None;
        }
        let peer = |_| {
            (
                NodeId(header.get_u64_le()),
                Incarnation(header.get_u64_le()),
            )
        };
        let peers: BTreeMap<_, _> = (0..count).map(peer).collect();
        statements.push(Statement {
            node,
            incarnation,
            sequence,
            peers,
        });
    }
    Some(statements)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: Message = Message {
        kind: Kind::Request,
        service: Service::Config,
        id: 0x0102,
    };

    fn envelope() -> Envelope {
        Envelope {
            origin: NodeId(5),
            origin_incarnation: Incarnation(7),
            target_incarnation: Incarnation(9),
            path: vec![NodeId(3), NodeId(2)],
            place: 1,
        }
    }

    fn statement() -> Statement {
        Statement {
            node: NodeId(3),
            incarnation: Incarnation(4),
            sequence: 5,
            peers: BTreeMap::from([(NodeId(1), Incarnation(2))]),
        }
    }

    #[test]
    fn the_wire_form_of_messages_is_frozen() {
        let header = MESSAGE.header(b"body");
        let expected = [1, 1, 3, 0, 2, 1, 0, 0, 0, 0, 0, 0, b'b', b'o', b'd', b'y'];
        assert_eq!(header[..], expected);
        let mut rest = header;
        assert_eq!(split(&mut rest), Some(Prefix::Message(MESSAGE)));
        assert_eq!(rest[..], *b"body");
    }

    #[test]
    fn the_wire_form_of_relayed_messages_is_frozen() {
        let header = MESSAGE.relayed_header(&envelope(), b"body");
        let numbers = |numbers: &[u64]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let numbers: Vec<u8> = numbers(&[5, 7, 9, 3, 2]);
        let expected = [
            &[1, 4, 3, 0, 2, 1, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0][..],
            &numbers,
            b"body",
        ];
        assert_eq!(header[..], expected.concat());
        let mut rest = header;
        let relayed = Prefix::Relayed(MESSAGE, envelope());
        assert_eq!(split(&mut rest), Some(relayed));
        assert_eq!(rest[..], *b"body");
        assert_eq!(envelope().way_back(), [NodeId(3), NodeId(5)]);
    }

    #[test]
    fn the_wire_form_of_statements_is_frozen() {
        let statement = statement();
        let header = statements_header([&statement, &statement].into_iter());
        assert_eq!(header.len(), PREFIX_BYTES + 2 * (28 + 16));
        assert_eq!(header[..4], [1, 5, 0, 0]);
        assert_eq!(header[12..20], 3_u64.to_le_bytes());
        assert_eq!(header[36..40], 1_u32.to_le_bytes());
        let mut rest = header;
        let both = Prefix::Statements(vec![statement.clone(), statement]);
        assert_eq!(split(&mut rest), Some(both));
    }

    #[test]
    fn no_cut_or_flipped_frame_is_taken_for_more_than_it_is() {
        let statement = statement();
        for whole in [
            MESSAGE.header(b""),
            MESSAGE.relayed_header(&envelope(), b""),
            statements_header([&statement].into_iter()),
        ] {
            for length in 0..whole.len() {
                let cut = split(&mut whole.slice(..length));
                let nothing_stated = Prefix::Statements(Vec::new());
                assert!(cut.is_none() || cut == Some(nothing_stated), "{cut:?}");
            }
            for at in 0..whole.len() {
                let mut flipped = whole.to_vec();
                flipped[at] ^= 0xff;
                if let Some(Prefix::Relayed(_, envelope)) = split(&mut flipped.into()) {
                    assert!(envelope.place < envelope.path.len());
                }
            }
        }
    }
}
