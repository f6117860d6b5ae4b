//! Frames on the wire between two nodes, inside TLS.
//!
//! ```text
//! version u8 | kind u8 | magic u16 | header length u32 | payload length u32 | checksum u64
//! header
//! payload
//! ```
//!
//! Numbers are little-endian. The checksum (XXH3, 64 bits) covers the first twelve bytes, the
//! header and the payload: TLS proves that nobody changed the bytes on the way, the checksum that
//! neither side's memory did. A stream that breaks any of these rules cannot be followed further
//! and is closed. Kinds other than data belong to the link itself.

use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::identity::{ClusterId, NodeUuid};
use crate::links::{Frame, Incarnation, NodeId};

const VERSION: u8 = 1;
const MAGIC: u16 = 0x4648;
pub(super) const HEAD_BYTES: usize = 20;
/// Header and payload of one frame together.
pub(super) const FRAME_BYTES_MAX: usize = 64 << 20;
/// The same for a frame from someone who has not been admitted yet, and for a join exchange.
pub(super) const GREETING_BYTES_MAX: usize = 64 << 10;
const _: () = assert!(FRAME_BYTES_MAX <= u32::MAX as usize);

/// The protocol spoken after the greeting. Greetings themselves keep their form for ever.
pub(super) const PROTOCOL_VERSION: u16 = 1;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A message of the layers above.
    Data = 1,
    /// Says that the sender lives.
    Ping = 2,
    /// The first frame in each direction: a [`Hello`].
    Hello = 3,
    /// The deciding side's word that this connection is the link: its number, u64.
    Start = 4,
    /// A [`LinkRefusal`]; the sender closes the connection after it.
    Refuse = 5,
    /// An opaque request to join.
    JoinRequest = 6,
    /// Its answer.
    JoinReply = 7,
}

/// Why a byte stream cannot be followed further.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// Another version of the frame format.
    #[error("a frame of version {0}, this node knows version {VERSION}")]
    Version(u8),
    /// No frame begins here.
    #[error("the bytes are no frame")]
    NotAFrame,
    /// A kind that this version does not know, or not at this place.
    #[error("an unexpected frame of kind {0}")]
    Kind(u8),
    /// A frame above the limit.
    #[error("a frame of {bytes} bytes, {limit} are allowed")]
    TooLong {
        /// Header and payload as announced.
        bytes: u64,
        /// The limit at this stage of the connection.
        limit: u64,
    },
    /// Bytes were changed in one of the two machines.
    #[error("a frame's checksum differs: memory or network of one of the two nodes is faulty")]
    Checksum,
    /// The content of a greeting is cut.
    #[error("a greeting is cut")]
    Greeting,
}

/// The first bytes of a frame.
pub(super) fn head(kind: Kind, header: &[u8], payload: &[u8]) -> [u8; HEAD_BYTES] {
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).expect("below FRAME_BYTES_MAX");
    let mut head = [0; HEAD_BYTES];
    let mut fields = &mut head[..];
    fields.put_slice(&[VERSION, kind as u8]);
    fields.put_u16_le(MAGIC);
    fields.put_u32_le(len(header));
    fields.put_u32_le(len(payload));
    let checksum = checksum(&head[..12], header, payload);
    head[12..].copy_from_slice(&checksum.to_le_bytes());
    head
}

/// A whole frame without payload, for the link's own messages.
pub(super) fn encode(kind: Kind, header: &[u8]) -> Bytes {
    [&head(kind, header, &[])[..], header].concat().into()
}

/// Cuts a byte stream into frames.
pub(super) struct Decoder {
    buffer: BytesMut,
    limit: usize,
}

impl Decoder {
    /// A decoder that takes frames of at most `limit` bytes of header and payload.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            limit,
        }
    }

    /// Changes the limit for the frames to come.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Adds bytes from the stream.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; its content is not copied.
    pub(super) fn next(&mut self) -> Result<Option<(Kind, Frame)>, FrameError> {
        let Some((&version, rest)) = self.buffer.split_first() else {
            return Ok(None);
        };
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if rest.len() < HEAD_BYTES - 1 {
            return Ok(None);
        }
        let mut fields = rest;
        let kind = fields.get_u8();
        if fields.get_u16_le() != MAGIC {
            return Err(FrameError::NotAFrame);
        }
        let kind = Kind::from_byte(kind).ok_or(FrameError::Kind(kind))?;
        let (header_len, payload_len) = (fields.get_u32_le(), fields.get_u32_le());
        let expected = fields.get_u64_le();
        let bytes = u64::from(header_len) + u64::from(payload_len);
        let limit = self.limit as u64;
        if bytes > limit {
            return Err(FrameError::TooLong { bytes, limit });
        }
        let end = HEAD_BYTES + bytes as usize;
        if self.buffer.len() < end {
            // One allocation for the whole frame, not one for each doubling.
            self.buffer.reserve(end - self.buffer.len());
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(end).freeze();
        let head = frame.split_to(HEAD_BYTES);
        let header = frame.split_to(header_len as usize);
        if checksum(&head[..12], &header, &frame) != expected {
            return Err(FrameError::Checksum);
        }
        Ok(Some((
            kind,
            Frame {
                header,
                payload: frame,
            },
        )))
    }
}

/// What each side says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) protocol: u16,
    pub(super) cluster: ClusterId,
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) uuid: NodeUuid,
    /// Drawn at every start: tells two processes of the same incarnation apart.
    pub(super) start: u64,
    /// The link's number if the sender is the deciding side and this is its decision, else zero.
    pub(super) link: u64,
    /// Where the sender listens; the first versions did not say.
    pub(super) listen: Option<SocketAddr>,
}

impl Hello {
    const BYTES: usize = 2 + 16 + 8 + 8 + 8 + 16 + 8 + 8;

    pub(super) fn encode(&self) -> Bytes {
        let mut body = Vec::with_capacity(Self::BYTES);
        body.put_u16_le(self.protocol);
        body.put_slice(&self.cluster.0);
        body.put_u64_le(self.from.0);
        body.put_u64_le(self.to.0);
        body.put_u64_le(self.incarnation.0);
        body.put_slice(&self.uuid.0);
        body.put_u64_le(self.start);
        body.put_u64_le(self.link);
        if let Some(listen) = self.listen {
            match listen.ip() {
                IpAddr::V4(ip) => {
                    body.put_u8(4);
                    body.put_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    body.put_u8(6);
                    body.put_slice(&ip.octets());
                }
            }
            body.put_u16_le(listen.port());
        }
        encode(Kind::Hello, &body)
    }

    /// Later versions may add fields at the end.
    pub(super) fn decode(mut body: &[u8]) -> Result<Self, FrameError> {
        if body.len() < Self::BYTES {
            return Err(FrameError::Greeting);
        }
        let protocol = body.get_u16_le();
        let mut cluster = ClusterId([0; 16]);
        body.copy_to_slice(&mut cluster.0);
        let (from, to) = (NodeId(body.get_u64_le()), NodeId(body.get_u64_le()));
        let incarnation = Incarnation(body.get_u64_le());
        let mut uuid = NodeUuid([0; 16]);
        body.copy_to_slice(&mut uuid.0);
        let (start, link) = (body.get_u64_le(), body.get_u64_le());
        let listen = match body {
            [4, ip @ ..] => address::<4>(ip),
            [6, ip @ ..] => address::<16>(ip),
            // An earlier version's greeting ends here; what a later one says is not for us.
            _ => None,
        };
        Ok(Self {
            protocol,
            cluster,
            from,
            to,
            incarnation,
            uuid,
            start,
            link,
            listen,
        })
    }
}

/// An address of so many bytes, and a port.
fn address<const BYTES: usize>(body: &[u8]) -> Option<SocketAddr>
where
    IpAddr: From<[u8; BYTES]>,
{
    let (ip, rest) = body.split_first_chunk::<BYTES>()?;
    let (port, _) = rest.split_first_chunk::<2>()?;
    let address = SocketAddr::new(IpAddr::from(*ip), u16::from_le_bytes(*port));
    (!address.ip().is_unspecified() && address.port() != 0).then_some(address)
}

/// Why a node turns a peer away.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[repr(u8)]
pub enum LinkRefusal {
    /// The peer belongs to another cluster.
    #[error("the nodes belong to different clusters. Check the peer's address")]
    OtherCluster = 1,
    /// The peers have no protocol version in common.
    #[error("the nodes have no protocol version in common. Upgrade the older one")]
    OtherVersion = 2,
    /// The peer is not the node that was dialled, or not the one its certificate names.
    #[error("another node answers at this address. Check the peer's address")]
    WrongNode = 3,
    /// The refusing node does not (yet, or any more) have the peer among its own.
    #[error("the node is not, or not yet, a member in the eyes of its peer")]
    UnknownNode = 4,
    /// The node's number was seen with another data directory, or in a later start: this is an
    /// old copy of a disk, or a second process of the same node.
    #[error(
        "the node's identity is in use or was used by a later start of it. If its disk was \
         restored from a copy, remove the node and join again as a new one"
    )]
    ReusedIdentity = 5,
}

impl LinkRefusal {
    pub(super) fn encode(self) -> Bytes {
        encode(Kind::Refuse, &[self as u8])
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let all = [
            Self::OtherCluster,
            Self::OtherVersion,
            Self::WrongNode,
            Self::UnknownNode,
            Self::ReusedIdentity,
        ];
        let code = body.first().ok_or(FrameError::Greeting)?;
        all.into_iter()
            .find(|refusal| *refusal as u8 == *code)
            .ok_or(FrameError::Greeting)
    }
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Data,
            Self::Ping,
            Self::Hello,
            Self::Start,
            Self::Refuse,
            Self::JoinRequest,
            Self::JoinReply,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

fn checksum(start: &[u8], header: &[u8], payload: &[u8]) -> u64 {
    xxh3_64_with_seed(payload, xxh3_64_with_seed(header, xxh3_64(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(header: &'static [u8], payload: &'static [u8]) -> Vec<u8> {
        [&head(Kind::Data, header, payload)[..], header, payload].concat()
    }

    fn decode(bytes: &[u8]) -> Result<Option<(Kind, Frame)>, FrameError> {
        let mut decoder = Decoder::new(64);
        decoder.extend(bytes);
        decoder.next()
    }

    #[test]
    fn a_stream_is_cut_into_its_frames_wherever_it_is_split() {
        let bytes = [
            stream(b"one", b"first payload"),
            stream(b"", b""),
            stream(b"3", b""),
        ]
        .concat();
        for split in 0..=bytes.len() {
            let mut decoder = Decoder::new(64);
            let mut frames = Vec::new();
            for part in [&bytes[..split], &bytes[split..]] {
                decoder.extend(part);
                while let Some((kind, frame)) = decoder.next().unwrap() {
                    assert_eq!(kind, Kind::Data);
                    frames.push((frame.header, frame.payload));
                }
            }
            let expected = [("one", "first payload"), ("", ""), ("3", "")]
                .map(|(header, payload)| (Bytes::from(header), Bytes::from(payload)));
            assert_eq!(frames, expected);
        }
    }

    #[test]
    fn every_changed_byte_is_found() {
        let whole = stream(b"header", b"payload");
        for position in 0..whole.len() {
            let mut changed = whole.clone();
            changed[position] ^= 1;
            assert!(
                !matches!(decode(&changed), Ok(Some(_))),
                "byte {position} was changed and nobody saw it"
            );
        }
    }

    #[test]
    fn a_frame_above_the_limit_is_refused_before_its_content_arrives() {
        let long = head(Kind::Data, &[0; 40], &[0; 25]);
        assert_eq!(
            decode(&long),
            Err(FrameError::TooLong {
                bytes: 65,
                limit: 64
            })
        );
        assert_eq!(decode(&head(Kind::Data, &[0; 40], &[0; 24])), Ok(None));
    }

    #[test]
    fn foreign_bytes_are_named() {
        assert_eq!(
            decode(b"GET / HTTP/1.1\r\n\r\n"),
            Err(FrameError::Version(b'G'))
        );
        assert_eq!(decode(&[1; 20]), Err(FrameError::NotAFrame));
        let mut unknown = stream(b"", b"");
        unknown[1] = 200;
        assert_eq!(decode(&unknown), Err(FrameError::Kind(200)));
    }

    fn hello(listen: Option<&str>) -> Hello {
        Hello {
            protocol: 1,
            cluster: ClusterId([2; 16]),
            from: NodeId(3),
            to: NodeId(4),
            incarnation: Incarnation(5),
            uuid: NodeUuid([6; 16]),
            start: 7,
            link: 8,
            listen: listen.map(|address| address.parse().unwrap()),
        }
    }

    #[test]
    fn a_hello_keeps_its_first_form_and_ignores_fields_of_later_versions() {
        let hello = hello(None);
        let (kind, frame) = {
            let mut decoder = Decoder::new(GREETING_BYTES_MAX);
            decoder.extend(&hello.encode());
            decoder.next().unwrap().unwrap()
        };
        assert_eq!(kind, Kind::Hello);
        let golden = [
            &[1, 0][..],
            &[2; 16],
            &[
                3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0,
            ],
            &[6; 16],
            &[7, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(frame.header, golden);
        assert_eq!(Hello::decode(&[&golden[..], b"later"].concat()), Ok(hello));
        assert_eq!(Hello::decode(&golden[1..]), Err(FrameError::Greeting));
    }

    #[test]
    fn a_hello_says_where_its_sender_listens() {
        for listen in ["10.0.0.11:7400", "[fd00::1]:7400"] {
            let hello = hello(Some(listen));
            let body = hello.encode().slice(HEAD_BYTES..);
            assert_eq!(Hello::decode(&body), Ok(hello));
            let later = [&body[..], b"later"].concat();
            assert_eq!(Hello::decode(&later), Ok(hello));
            // Cut short it says nothing, as an earlier version's.
            let cut = Hello::decode(&body[..body.len() - 1]).unwrap();
            assert_eq!(cut.listen, None);
        }
        let v4 = [4, 10, 0, 0, 11, 0xe8, 0x1c];
        assert_eq!(address::<4>(&v4[1..]), "10.0.0.11:7400".parse().ok());
        assert_eq!(
            address::<4>(&[0, 0, 0, 0, 1, 1]),
            None,
            "no address to dial"
        );
    }

    #[test]
    fn every_refusal_survives_the_wire() {
        for code in 1..=5 {
            let refusal = LinkRefusal::decode(&[code]).unwrap();
            assert_eq!(refusal.encode()[HEAD_BYTES..], [code]);
        }
        assert_eq!(LinkRefusal::decode(&[6]), Err(FrameError::Greeting));
    }
}
