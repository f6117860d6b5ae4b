//! iSCSI protocol data units: building what an initiator sends, parsing what a target answers
//! (RFC 7143 section 11), and framing with digests.
//!
//! Promises
//! - Nothing here panics on received bytes; a segment beyond the declared limit is refused from
//!   its header, before its bytes are awaited.
//! - A received data segment is a view into the receive buffer, not a copy.
//!
//! All numbers are big-endian except digests, which go least-significant byte first.

use bytes::{Buf, Bytes, BytesMut};
use crc_fast::CrcAlgorithm::Crc32Iscsi;

use crate::error::ProtocolError;

/// Bytes of a basic header segment.
pub(crate) const BHS_LENGTH: usize = 48;
/// "No task", as initiator or target task tag.
pub(crate) const NO_TAG: u32 = 0xffff_ffff;

const DIGEST_LENGTH: usize = 4;
/// Data segments up to this many bytes are copied behind their header, so that one write call
/// carries many PDUs; larger ones are written from where they are.
const COPY_LIMIT: usize = 16 * 1024;

/// Opcodes that an initiator sends.
pub(crate) mod request {
    pub(crate) const NOP_OUT: u8 = 0x00;
    pub(crate) const SCSI_COMMAND: u8 = 0x01;
    pub(crate) const LOGIN: u8 = 0x03;
    pub(crate) const TEXT: u8 = 0x04;
    pub(crate) const DATA_OUT: u8 = 0x05;
    pub(crate) const LOGOUT: u8 = 0x06;
    /// Flag in the opcode byte: deliver at once, take no CmdSN.
    pub(crate) const IMMEDIATE: u8 = 0x40;
}

/// Opcodes that a target sends.
pub(crate) mod answer {
    pub(crate) const NOP_IN: u8 = 0x20;
    pub(crate) const SCSI_RESPONSE: u8 = 0x21;
    pub(crate) const LOGIN: u8 = 0x23;
    pub(crate) const TEXT: u8 = 0x24;
    pub(crate) const DATA_IN: u8 = 0x25;
    pub(crate) const LOGOUT: u8 = 0x26;
    pub(crate) const R2T: u8 = 0x31;
    pub(crate) const ASYNC_MESSAGE: u8 = 0x32;
    pub(crate) const REJECT: u8 = 0x3f;
}

/// The final bit, in byte 1 of nearly every PDU.
pub(crate) const FINAL: u8 = 0x80;
/// "The text goes on in the next PDU", in byte 1 of login and text PDUs.
pub(crate) const CONTINUES: u8 = 0x40;

/// A basic header segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bhs([u8; BHS_LENGTH]);

impl std::fmt::Debug for Bhs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bhs({:02x?})", self.0)
    }
}

impl Bhs {
    pub(crate) fn new(opcode: u8, flags: u8) -> Self {
        let mut bytes = [0; BHS_LENGTH];
        bytes[0] = opcode;
        bytes[1] = flags;
        Self(bytes)
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    pub(crate) fn byte(&self, at: usize) -> u8 {
        self.0[at]
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes(at))
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.bytes(at))
    }

    pub(crate) fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.0[at..at + N]);
        out
    }

    pub(crate) fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn with_u32(self, at: usize, value: u32) -> Self {
        self.with(at, &value.to_be_bytes())
    }

    /// The initiator task tag.
    pub(crate) fn task(&self) -> u32 {
        self.u32(16)
    }

    fn data_length(&self) -> u32 {
        u32::from_be_bytes([0, self.0[5], self.0[6], self.0[7]])
    }

    fn additional_length(&self) -> usize {
        usize::from(self.0[4]) * 4
    }
}

/// A header with its data segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pdu {
    pub(crate) bhs: Bhs,
    pub(crate) data: Bytes,
}

/// The sequence numbers that every answer of a target carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) stat_sn: u32,
    pub(crate) exp_cmd_sn: u32,
    pub(crate) max_cmd_sn: u32,
}

/// By how much the bytes moved differ from the bytes expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residual {
    /// They agree.
    #[default]
    None,
    /// So many bytes fewer than the initiator expected.
    Underflow(u32),
    /// So many bytes more than the initiator had room for.
    Overflow(u32),
}

/// A parsed header of a target's PDU. The data segment stays beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    NopIn {
        task: u32,
        transfer: u32,
        lun: [u8; 8],
    },
    Scsi {
        task: u32,
        response: u8,
        status: u8,
        residual: Residual,
    },
    DataIn(DataIn),
    ReadyToTransfer {
        task: u32,
        transfer: u32,
        lun: [u8; 8],
        sn: u32,
        offset: u32,
        length: u32,
    },
    Text {
        task: u32,
        transfer: u32,
        lun: [u8; 8],
        is_final: bool,
    },
    Logout {
        task: u32,
        response: u8,
    },
    Async {
        event: u8,
        parameter3: u16,
    },
    Reject {
        reason: u8,
    },
}

/// The header of a Data-In PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataIn {
    pub(crate) task: u32,
    pub(crate) sn: u32,
    pub(crate) offset: u32,
    /// Status and residual, if this PDU ends the command.
    pub(crate) status: Option<(u8, Residual)>,
}

/// Parses a full-feature-phase header. Login answers are read by the login itself.
pub(crate) fn parse(bhs: &Bhs) -> Result<(Numbers, Answer), ProtocolError> {
    let numbers = Numbers {
        stat_sn: bhs.u32(24),
        exp_cmd_sn: bhs.u32(28),
        max_cmd_sn: bhs.u32(32),
    };
    let task = bhs.task();
    let transfer = bhs.u32(20);
    let lun = bhs.bytes(8);
    let answer = match bhs.opcode() {
        answer::NOP_IN => Answer::NopIn {
            task,
            transfer,
            lun,
        },
        answer::SCSI_RESPONSE => Answer::Scsi {
            task,
            response: bhs.byte(2),
            status: bhs.byte(3),
            residual: residual(bhs),
        },
        answer::DATA_IN => Answer::DataIn(DataIn {
            task,
            sn: bhs.u32(36),
            offset: bhs.u32(40),
            status: (bhs.byte(1) & 0x01 != 0).then(|| (bhs.byte(3), residual(bhs))),
        }),
        answer::R2T => Answer::ReadyToTransfer {
            task,
            transfer,
            lun,
            sn: bhs.u32(36),
            offset: bhs.u32(40),
            length: bhs.u32(44),
        },
        answer::TEXT => Answer::Text {
            task,
            transfer,
            lun,
            is_final: bhs.byte(1) & FINAL != 0,
        },
        answer::LOGOUT => Answer::Logout {
            task,
            response: bhs.byte(2),
        },
        answer::ASYNC_MESSAGE => Answer::Async {
            event: bhs.byte(36),
            parameter3: bhs.u16(42),
        },
        answer::REJECT => Answer::Reject {
            reason: bhs.byte(2),
        },
        other => return Err(ProtocolError::Opcode(other)),
    };
    Ok((numbers, answer))
}

fn residual(bhs: &Bhs) -> Residual {
    let count = bhs.u32(44);
    match bhs.byte(1) & 0x06 {
        0x02 => Residual::Underflow(count),
        0x04 => Residual::Overflow(count),
        // Neither bit, or both, which section 11.4.5.1 forbids: nothing usable was said.
        _ => Residual::None,
    }
}

/// Which segments of a connection carry CRC32C.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Digests {
    pub(crate) header: bool,
    pub(crate) data: bool,
}

/// Appends `pdu` to `out`. A large data segment is not copied but handed back: the caller sends
/// `out`, then the segment, then what [`encode_trailer`] appends for it.
pub(crate) fn encode(pdu: &Pdu, digests: Digests, out: &mut Vec<u8>) -> Option<Bytes> {
    let start = out.len();
    out.extend_from_slice(&pdu.bhs.0);
    let length = pdu.data.len() as u32;
    out[start + 5..start + 8].copy_from_slice(&length.to_be_bytes()[1..]);
    if digests.header {
        let digest = crc_fast::checksum(Crc32Iscsi, &out[start..start + BHS_LENGTH]) as u32;
        out.extend_from_slice(&digest.to_le_bytes());
    }
    if pdu.data.len() > COPY_LIMIT {
        return Some(pdu.data.clone());
    }
    out.extend_from_slice(&pdu.data);
    encode_trailer(&pdu.data, digests, out);
    None
}

/// Appends what follows a data segment: padding and digest.
pub(crate) fn encode_trailer(data: &[u8], digests: Digests, out: &mut Vec<u8>) {
    let padding = &[0_u8; 3][..padding(data.len())];
    out.extend_from_slice(padding);
    if digests.data && !data.is_empty() {
        out.extend_from_slice(&data_digest(data, padding).to_le_bytes());
    }
}

/// Cuts PDUs out of a stream of bytes.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// Received and not yet decoded.
    pub(crate) buffer: BytesMut,
    pub(crate) digests: Digests,
    /// The longest data segment that we have declared to accept, in bytes.
    pub(crate) data_limit: u32,
}

impl Decoder {
    pub(crate) fn new(data_limit: u32) -> Self {
        Self {
            buffer: BytesMut::new(),
            digests: Digests::default(),
            data_limit,
        }
    }

    /// The next complete PDU; `None` until more bytes have come.
    pub(crate) fn next(&mut self) -> Result<Option<Pdu>, ProtocolError> {
        let Some(header) = self.buffer.first_chunk::<BHS_LENGTH>() else {
            return Ok(None);
        };
        let bhs = Bhs(*header);
        let length = bhs.data_length();
        if length > self.data_limit {
            return Err(ProtocolError::DataSegmentTooLong {
                length,
                limit: self.data_limit,
            });
        }
        let length = length as usize;
        let header_end = BHS_LENGTH + bhs.additional_length();
        let data_start = header_end
            + if self.digests.header {
                DIGEST_LENGTH
            } else {
                0
            };
        let data_end = data_start + length;
        let padded_end = data_end + padding(length);
        let has_data_digest = self.digests.data && length > 0;
        let end = padded_end + if has_data_digest { DIGEST_LENGTH } else { 0 };
        if self.buffer.len() < data_start {
            return Ok(None);
        }
        if self.digests.header {
            let digest = crc_fast::checksum(Crc32Iscsi, &self.buffer[..header_end]) as u32;
            if self.buffer[header_end..data_start] != digest.to_le_bytes() {
                return Err(ProtocolError::HeaderDigest);
            }
        }
        if self.buffer.len() < end {
            return Ok(None);
        }
        let mut whole = self.buffer.split_to(end);
        if has_data_digest {
            let digest = data_digest(&whole[data_start..data_end], &whole[data_end..padded_end]);
            if whole[padded_end..] != digest.to_le_bytes() {
                return Err(ProtocolError::DataDigest);
            }
        }
        whole.advance(data_start);
        whole.truncate(length);
        Ok(Some(Pdu {
            bhs,
            data: whole.freeze(),
        }))
    }
}

fn padding(length: usize) -> usize {
    length.wrapping_neg() % 4
}

fn data_digest(data: &[u8], padding: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(Crc32Iscsi);
    digest.update(data);
    digest.update(padding);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Digests = Digests {
        header: true,
        data: true,
    };

    fn sample(data: &'static [u8]) -> Pdu {
        let bhs = Bhs::new(answer::DATA_IN, FINAL | 0x03)
            .with_u32(16, 7)
            .with_u32(24, 100)
            .with_u32(28, 5)
            .with_u32(32, 68)
            .with_u32(36, 2)
            .with_u32(40, 8192)
            .with_u32(44, 512);
        Pdu {
            bhs,
            data: Bytes::from_static(data),
        }
    }

    fn decode_all(bytes: &[u8], digests: Digests) -> Result<Vec<Pdu>, ProtocolError> {
        let mut decoder = Decoder::new(8192);
        decoder.digests = digests;
        let mut out = Vec::new();
        // One byte at a time: a PDU must never depend on how the stream was cut.
        for byte in bytes {
            decoder.buffer.extend_from_slice(&[*byte]);
            out.extend(decoder.next()?);
        }
        Ok(out)
    }

    #[test]
    fn crc32c_matches_the_published_vectors_in_wire_order() {
        let wire = |bytes: &[u8]| data_digest(bytes, &[]).to_le_bytes();
        assert_eq!(wire(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(wire(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(wire(&ascending), [0x4e, 0x79, 0xdd, 0x46]);
        assert_eq!(data_digest(b"12345", b"6789"), 0xe306_9283);
    }

    #[test]
    fn encoded_pdus_decode_to_themselves_with_and_without_digests() {
        for digests in [Digests::default(), BOTH] {
            let pdus = [
                sample(b""),
                sample(b"a"),
                sample(b"abcd"),
                sample(b"abcdefg"),
            ];
            let mut wire = Vec::new();
            for pdu in &pdus {
                assert_eq!(encode(pdu, digests, &mut wire), None);
            }
            assert_eq!(wire.len() % 4, 0);
            let decoded = decode_all(&wire, digests).unwrap();
            assert_eq!(decoded.len(), pdus.len());
            for (found, expected) in decoded.iter().zip(&pdus) {
                assert_eq!(found.data, expected.data);
                assert_eq!(parse(&found.bhs), parse(&expected.bhs));
            }
        }
    }

    #[test]
    fn a_large_segment_is_sent_from_where_it_is_and_decodes_the_same() {
        let data = Bytes::from(vec![0x5a; COPY_LIMIT + 1]);
        let pdu = Pdu {
            bhs: sample(b"").bhs,
            data: data.clone(),
        };
        let mut wire = Vec::new();
        let direct = encode(&pdu, BOTH, &mut wire).unwrap();
        wire.extend_from_slice(&direct);
        encode_trailer(&direct, BOTH, &mut wire);
        let mut decoder = Decoder::new(1 << 20);
        decoder.digests = BOTH;
        decoder.buffer.extend_from_slice(&wire);
        assert_eq!(decoder.next().unwrap().unwrap().data, data);
        assert!(decoder.buffer.is_empty());
    }

    #[test]
    fn one_flipped_bit_in_header_or_data_is_a_digest_error() {
        let mut wire = Vec::new();
        encode(&sample(b"abcdef"), BOTH, &mut wire);
        let mut header = wire.clone();
        header[20] ^= 1;
        assert_eq!(decode_all(&header, BOTH), Err(ProtocolError::HeaderDigest));
        let mut data = wire.clone();
        data[BHS_LENGTH + DIGEST_LENGTH + 3] ^= 0x80;
        assert_eq!(decode_all(&data, BOTH), Err(ProtocolError::DataDigest));
        let mut pad = wire;
        pad[BHS_LENGTH + DIGEST_LENGTH + 7] ^= 0x80;
        assert_eq!(decode_all(&pad, BOTH), Err(ProtocolError::DataDigest));
    }

    #[test]
    fn a_segment_beyond_the_declared_length_is_refused_from_its_header() {
        let bhs = sample(b"").bhs.with(5, &[0x00, 0x20, 0x01]);
        assert_eq!(
            decode_all(&bhs.0, Digests::default()),
            Err(ProtocolError::DataSegmentTooLong {
                length: 8193,
                limit: 8192
            })
        );
    }

    #[test]
    fn additional_header_segments_are_skipped() {
        let mut wire = sample(b"").bhs.with(4, &[2, 0, 0, 4]).0.to_vec();
        wire.extend_from_slice(&[9; 8]);
        wire.extend_from_slice(b"data");
        let decoded = decode_all(&wire, Digests::default()).unwrap();
        assert_eq!(&decoded[0].data[..], b"data");
    }

    #[test]
    fn data_in_fields_are_where_the_standard_puts_them() {
        let (numbers, answer) = parse(&sample(b"").bhs).unwrap();
        assert_eq!(
            numbers,
            Numbers {
                stat_sn: 100,
                exp_cmd_sn: 5,
                max_cmd_sn: 68
            }
        );
        let status = Some((0, Residual::Underflow(512)));
        assert_eq!(
            answer,
            Answer::DataIn(DataIn {
                task: 7,
                sn: 2,
                offset: 8192,
                status
            })
        );
    }

    #[test]
    fn an_initiators_opcode_is_refused() {
        let bhs = Bhs::new(request::SCSI_COMMAND, FINAL);
        assert_eq!(
            parse(&bhs),
            Err(ProtocolError::Opcode(request::SCSI_COMMAND))
        );
    }
}
