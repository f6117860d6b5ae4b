//! Wire form of membership datagrams, and the screen that hostile or stale ones do not pass.
//!
//! All numbers little-endian but the member count, which foca writes itself (big-endian):
//!
//! ```text
//! identity  node u64, incarnation u64, renewal u32
//! member    identity, refutation u16, state u8
//! datagram  source identity, refutation u16, destination identity, message u8,
//!           [other identity] (messages 3..=6), [probe number u8] (messages 1..=6),
//!           [count u16 big-endian, members] (messages but 7 and 10)
//! ```

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use bytes::{Buf, BufMut};
use foca::{Header, Message, State};
use holdfast_runtime::{Incarnation, NodeId};
use thiserror::Error;

/// Largest membership datagram: holds 64 members and more. Links carry frames, not IP packets,
/// so no MTU applies.
pub(crate) const DATAGRAM_BYTES_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

const IDENTITY_BYTES: usize = 20;
const MEMBER_BYTES: usize = IDENTITY_BYTES + 3;
const COUNT_BYTES: usize = 2;
const HEADER_BYTES_MAX: usize = 2 * IDENTITY_BYTES + 3 + IDENTITY_BYTES + 1;

const _: () =
    assert!(HEADER_BYTES_MAX + COUNT_BYTES + 64 * MEMBER_BYTES <= DATAGRAM_BYTES_MAX.get());

/// Who a rumour is about. A process that was declared down while it lives takes a new renewal;
/// a restarted one has a larger incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) renewal: u32,
}

impl Identity {
    /// The address of a node whose start is unknown, good for an announcement only.
    pub(crate) fn address_of(node: NodeId) -> Self {
        Self {
            node,
            incarnation: Incarnation(0),
            renewal: 0,
        }
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self {
            renewal: self.renewal.checked_add(1)?,
            ..*self
        })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.incarnation, self.renewal) > (adversary.incarnation, adversary.renewal)
    }
}

/// Why a datagram was dropped. The state is unchanged in each case.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum CodecError {
    #[error("the datagram is cut short, too long or of an unknown form")]
    Malformed,
    #[error("the datagram's source is not the process it came from")]
    ForeignSource,
    #[error("the datagram wants an answer for a node that is no peer")]
    UnknownMember,
    #[error("the message is none that this protocol sends")]
    Unused,
    #[error("no room left in the datagram")]
    Full,
}

/// Checks a datagram that came from `from` and removes rumours about nodes that are not peers
/// (memory stays bounded) and about starts of this node that never were (they would be believed
/// over the truth).
pub(crate) fn screen<'a>(
    datagram: &'a [u8],
    from: (NodeId, Incarnation),
    local: Identity,
    peers: &BTreeSet<NodeId>,
) -> Result<Cow<'a, [u8]>, CodecError> {
    let mut rest = datagram;
    let header = get_header(&mut rest)?;
    if (header.src.node, header.src.incarnation) != from {
        return Err(CodecError::ForeignSource);
    }
    let known = |identity: &Identity| {
        peers.contains(&identity.node)
            || identity.node == local.node && identity.incarnation <= local.incarnation
    };
    if named_in(&header.message).is_some_and(|identity| !known(&identity)) {
        return Err(CodecError::UnknownMember);
    }
    if rest.is_empty() {
        return Ok(Cow::Borrowed(datagram));
    }
    let members_at = datagram.len() - rest.len() + COUNT_BYTES;
    if rest.len() < COUNT_BYTES {
        return Err(CodecError::Malformed);
    }
    let count = usize::from(rest.get_u16());
    if rest.len() != count * MEMBER_BYTES {
        return Err(CodecError::Malformed);
    }
    let mut kept = Vec::new();
    for record in rest.chunks_exact(MEMBER_BYTES) {
        if known(get_member(&mut &record[..])?.id()) {
            kept.push(record);
        }
    }
    if kept.len() == count {
        return Ok(Cow::Borrowed(datagram));
    }
    let mut screened = datagram[..members_at - COUNT_BYTES].to_vec();
    screened.put_u16(kept.len() as u16);
    for record in kept {
        screened.put_slice(record);
    }
    Ok(Cow::Owned(screened))
}

/// Whether a datagram is a probed member's own answer.
pub(crate) fn is_ack(mut datagram: &[u8]) -> bool {
    get_header(&mut datagram).is_ok_and(|header| matches!(header.message, Message::Ack(_)))
}

/// foca's codec for [`Identity`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codec;

impl foca::Codec<Identity> for Codec {
    type Error = CodecError;

    fn encode_header(
        &mut self,
        header: &Header<Identity>,
        mut buffer: impl BufMut,
    ) -> Result<(), CodecError> {
        if buffer.remaining_mut() < HEADER_BYTES_MAX {
            return Err(CodecError::Full);
        }
        put_identity(&header.src, &mut buffer);
        buffer.put_u16_le(header.src_incarnation);
        put_identity(&header.dst, &mut buffer);
        let (tag, probe_number) = match &header.message {
            Message::Ping(probe_number) => (1, Some(probe_number)),
            Message::Ack(probe_number) => (2, Some(probe_number)),
            Message::PingReq { probe_number, .. } => (3, Some(probe_number)),
            Message::IndirectPing { probe_number, .. } => (4, Some(probe_number)),
            Message::IndirectAck { probe_number, .. } => (5, Some(probe_number)),
            Message::ForwardedAck { probe_number, .. } => (6, Some(probe_number)),
            Message::Announce => (7, None),
            Message::Feed => (8, None),
            Message::Gossip => (9, None),
            Message::TurnUndead => (10, None),
            Message::Broadcast => return Err(CodecError::Unused),
        };
        buffer.put_u8(tag);
        if let Some(identity) = named_in(&header.message) {
            put_identity(&identity, &mut buffer);
        }
        if let Some(probe_number) = probe_number {
            buffer.put_u8(*probe_number);
        }
        Ok(())
    }

    fn decode_header(&mut self, mut buffer: impl Buf) -> Result<Header<Identity>, CodecError> {
        get_header(&mut buffer)
    }

    fn encode_member(
        &mut self,
        member: &foca::Member<Identity>,
        mut buffer: impl BufMut,
    ) -> Result<(), CodecError> {
        if buffer.remaining_mut() < MEMBER_BYTES {
            return Err(CodecError::Full);
        }
        put_identity(member.id(), &mut buffer);
        buffer.put_u16_le(member.incarnation());
        buffer.put_u8(match member.state() {
            State::Alive => 1,
            State::Suspect => 2,
            State::Down => 3,
        });
        Ok(())
    }

    fn decode_member(
        &mut self,
        mut buffer: impl Buf,
    ) -> Result<foca::Member<Identity>, CodecError> {
        get_member(&mut buffer)
    }
}

/// The third party of a message, if it has one.
fn named_in(message: &Message<Identity>) -> Option<Identity> {
    match message {
        Message::PingReq { target, .. } | Message::IndirectAck { target, .. } => Some(*target),
        Message::IndirectPing { origin, .. } | Message::ForwardedAck { origin, .. } => {
            Some(*origin)
        }
        Message::Ping(_)
        | Message::Ack(_)
        | Message::Announce
        | Message::Feed
        | Message::Gossip
        | Message::Broadcast
        | Message::TurnUndead => None,
    }
}

fn put_identity(identity: &Identity, buffer: &mut impl BufMut) {
    buffer.put_u64_le(identity.node.0);
    buffer.put_u64_le(identity.incarnation.0);
    buffer.put_u32_le(identity.renewal);
}

fn get_identity(buffer: &mut impl Buf) -> Result<Identity, CodecError> {
    Ok(Identity {
        node: NodeId(buffer.try_get_u64_le().map_err(|_| CodecError::Malformed)?),
        incarnation: Incarnation(buffer.try_get_u64_le().map_err(|_| CodecError::Malformed)?),
        renewal: buffer.try_get_u32_le().map_err(|_| CodecError::Malformed)?,
    })
}

fn get_header(buffer: &mut impl Buf) -> Result<Header<Identity>, CodecError> {
    let src = get_identity(buffer)?;
    let src_incarnation = buffer.try_get_u16_le().map_err(|_| CodecError::Malformed)?;
    let dst = get_identity(buffer)?;
    let tag = get_byte(buffer)?;
    let message = match tag {
        1 => Message::Ping(get_byte(buffer)?),
        2 => Message::Ack(get_byte(buffer)?),
        3..=6 => {
            let other = get_identity(buffer)?;
            let probe_number = get_byte(buffer)?;
            match tag {
                3 => Message::PingReq {
                    target: other,
                    probe_number,
                },
                4 => Message::IndirectPing {
                    origin: other,
                    probe_number,
                },
                5 => Message::IndirectAck {
                    target: other,
                    probe_number,
                },
                _ => Message::ForwardedAck {
                    origin: other,
                    probe_number,
                },
            }
        }
        7 => Message::Announce,
        8 => Message::Feed,
        9 => Message::Gossip,
        10 => Message::TurnUndead,
        _ => return Err(CodecError::Malformed),
    };
    Ok(Header {
        src,
        src_incarnation,
        dst,
        message,
    })
}

fn get_byte(buffer: &mut impl Buf) -> Result<u8, CodecError> {
    buffer.try_get_u8().map_err(|_| CodecError::Malformed)
}

fn get_member(buffer: &mut impl Buf) -> Result<foca::Member<Identity>, CodecError> {
    let identity = get_identity(buffer)?;
    let refutation = buffer.try_get_u16_le().map_err(|_| CodecError::Malformed)?;
    let state = match get_byte(buffer)? {
        1 => State::Alive,
        2 => State::Suspect,
        3 => State::Down,
        _ => return Err(CodecError::Malformed),
    };
    Ok(foca::Member::new(identity, refutation, state))
}

#[cfg(test)]
mod tests {
    use foca::Codec as _;

    use super::*;

    fn identity(node: u64, incarnation: u64) -> Identity {
        Identity {
            node: NodeId(node),
            incarnation: Incarnation(incarnation),
            renewal: 5,
        }
    }

    fn datagram(message: Message<Identity>, members: &[foca::Member<Identity>]) -> Vec<u8> {
        let (src, dst) = (identity(1, 7), identity(2, 9));
        let header = Header {
            src,
            src_incarnation: 3,
            dst,
            message,
        };
        let mut bytes = Vec::new();
        Codec.encode_header(&header, &mut bytes).unwrap();
        bytes.put_u16(members.len() as u16);
        for member in members {
            Codec.encode_member(member, &mut bytes).unwrap();
        }
        bytes
    }

    fn screened(bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
        let peers = BTreeSet::from([NodeId(1), NodeId(3)]);
        let from = (NodeId(1), Incarnation(7));
        screen(bytes, from, identity(2, 9), &peers).map(Cow::into_owned)
    }

    #[test]
    fn every_message_survives_the_wire() {
        let (other, probe_number) = (identity(3, 1), 200);
        for message in [
            Message::Ping(probe_number),
            Message::Ack(probe_number),
            Message::PingReq {
                target: other,
                probe_number,
            },
            Message::IndirectPing {
                origin: other,
                probe_number,
            },
            Message::IndirectAck {
                target: other,
                probe_number,
            },
            Message::ForwardedAck {
                origin: other,
                probe_number,
            },
            Message::Announce,
            Message::Feed,
            Message::Gossip,
            Message::TurnUndead,
        ] {
            let header = Header {
                src: identity(1, 7),
                src_incarnation: 3,
                dst: identity(2, 9),
                message,
            };
            let mut bytes = Vec::new();
            Codec.encode_header(&header, &mut bytes).unwrap();
            let mut rest = &bytes[..];
            assert_eq!(Codec.decode_header(&mut rest), Ok(header));
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn wire_form_of_version_1_is_frozen() {
        let member = foca::Member::new(identity(3, 4), 0x0201, State::Suspect);
        let expected = [
            &[
                1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 3, 0,
            ][..],
            &[
                2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 77,
            ][..],
            &[
                0, 1, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 2, 2,
            ][..],
        ];
        assert_eq!(datagram(Message::Ping(77), &[member]), expected.concat());
    }

    #[test]
    fn rumours_about_strangers_are_removed() {
        let friend = foca::Member::new(identity(3, 4), 1, State::Alive);
        let stranger = foca::Member::new(identity(8, 4), 1, State::Alive);
        let both = datagram(Message::Gossip, &[stranger.clone(), friend.clone()]);
        assert_eq!(screened(&both), Ok(datagram(Message::Gossip, &[friend])));
        let target = identity(8, 1);
        let request = datagram(
            Message::PingReq {
                target,
                probe_number: 1,
            },
            &[],
        );
        assert_eq!(screened(&request), Err(CodecError::UnknownMember));
    }

    #[test]
    fn rumours_about_a_start_of_this_node_that_never_was_are_removed() {
        let past = foca::Member::new(identity(2, 8), 1, State::Down);
        let future = foca::Member::new(identity(2, 10), 1, State::Alive);
        let both = datagram(Message::Gossip, &[past.clone(), future]);
        assert_eq!(screened(&both), Ok(datagram(Message::Gossip, &[past])));
    }

    #[test]
    fn a_datagram_of_another_process_than_its_sender_is_refused() {
        let bytes = datagram(Message::Gossip, &[]);
        let peers = BTreeSet::from([NodeId(1), NodeId(3)]);
        for from in [(NodeId(3), Incarnation(7)), (NodeId(1), Incarnation(8))] {
            let outcome = screen(&bytes, from, identity(2, 9), &peers);
            assert_eq!(outcome, Err(CodecError::ForeignSource));
        }
    }

    #[test]
    fn a_datagram_cut_anywhere_is_refused_or_empty_of_members() {
        let member = foca::Member::new(identity(3, 4), 1, State::Alive);
        let whole = datagram(Message::Gossip, &[member.clone(), member]);
        let without_members = datagram(Message::Gossip, &[]).len() - COUNT_BYTES;
        for length in (0..whole.len()).filter(|length| *length != without_members) {
            assert_eq!(
                screened(&whole[..length]),
                Err(CodecError::Malformed),
                "{length}"
            );
        }
        assert_eq!(screened(&whole), Ok(whole.clone()));
    }
}
