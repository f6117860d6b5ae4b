//! PDUs in a byte stream: lengths, padding and CRC32C digests (RFC 7143 11.2, 13.1).
//!
//! The decoder judges the lengths of a PDU as soon as its header is there, so a hostile length
//! costs no memory. Data segments are slices of the receive buffer.

use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use thiserror::Error;

use super::{HEADER_BYTES, Pdu};

/// Longest additional header segments accepted: an extended CDB of 260 bytes and a
/// bidirectional read length are the only ones defined.
pub const ADDITIONAL_BYTES_MAX: usize = 276;

/// Size of a digest.
const DIGEST_BYTES: usize = 4;

/// Which digests a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Digests {
    /// CRC32C over the header segments.
    pub header: bool,
    /// CRC32C over the data segment and its padding.
    pub data: bool,
}

/// Why the stream cannot be followed. The connection must be closed: nothing after the error can
/// be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// A data segment longer than this side declared to accept.
    #[error("data segment of {length} bytes, at most {limit} are accepted")]
    DataTooLong {
        /// Length in the header.
        length: usize,
        /// Declared limit.
        limit: usize,
    },
    /// Additional header segments longer than any that are defined.
    #[error("additional header segments of {length} bytes")]
    AdditionalTooLong {
        /// Length in the header.
        length: usize,
    },
    /// The header digest is wrong.
    #[error("header digest mismatch")]
    HeaderDigest,
    /// The data digest is wrong.
    #[error("data digest mismatch")]
    DataDigest,
}

/// Splits received bytes into PDUs.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    /// Digests that the peer sends.
    pub digests: Digests,
    /// Longest data segment accepted, in bytes.
    pub data_bytes_max: usize,
}

struct Layout {
    additional: usize,
    data: usize,
    data_at: usize,
    total: usize,
}

impl Decoder {
    /// Takes the first PDU off `buffer`; `None` if it is not complete yet.
    pub fn decode(&self, buffer: &mut BytesMut) -> Result<Option<Pdu>, FrameError> {
        let Some(layout) = self.layout(buffer)? else {
            return Ok(None);
        };
        if buffer.len() < layout.total {
            return Ok(None);
        }
        let mut bytes = buffer.split_to(layout.total).freeze();
        let headers = HEADER_BYTES + layout.additional;
        if self.digests.header && crc32c(&[&bytes[..headers]]) != digest_at(&bytes, headers) {
            return Err(FrameError::HeaderDigest);
        }
        let padded_end = layout.data_at + layout.data.next_multiple_of(4);
        let digested = self.digests.data && layout.data > 0;
        if digested
            && crc32c(&[&bytes[layout.data_at..padded_end]]) != digest_at(&bytes, padded_end)
        {
            return Err(FrameError::DataDigest);
        }
        let data = bytes.slice(layout.data_at..layout.data_at + layout.data);
        let additional = bytes.slice(HEADER_BYTES..headers);
        let mut header = [0; HEADER_BYTES];
        bytes.copy_to_slice(&mut header);
        Ok(Some(Pdu {
            header,
            additional,
            data,
        }))
    }

    /// How many more bytes the first PDU of `buffer` needs before it can be decoded.
    pub fn missing(&self, buffer: &[u8]) -> usize {
        match self.layout(buffer) {
            Ok(Some(layout)) => layout.total.saturating_sub(buffer.len()),
            Ok(None) => HEADER_BYTES - buffer.len(),
            Err(_) => 0,
        }
    }

    fn layout(&self, buffer: &[u8]) -> Result<Option<Layout>, FrameError> {
        let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let additional = usize::from(header[4]) * 4;
        let data = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        if additional > ADDITIONAL_BYTES_MAX {
            return Err(FrameError::AdditionalTooLong { length: additional });
        }
        if data > self.data_bytes_max {
            return Err(FrameError::DataTooLong {
                length: data,
                limit: self.data_bytes_max,
            });
        }
        let header_digest = if self.digests.header { DIGEST_BYTES } else { 0 };
        let data_digest = if self.digests.data && data > 0 {
            DIGEST_BYTES
        } else {
            0
        };
        let data_at = HEADER_BYTES + additional + header_digest;
        let total = data_at + data.next_multiple_of(4) + data_digest;
        Ok(Some(Layout {
            additional,
            data,
            data_at,
            total,
        }))
    }
}

/// A PDU ready to be written: three pieces, of which the data is not copied.
#[derive(Clone, Debug)]
pub struct Frame {
    head: [u8; HEADER_BYTES + DIGEST_BYTES],
    head_bytes: usize,
    data: Bytes,
    tail: [u8; 3 + DIGEST_BYTES],
    tail_bytes: usize,
    sent: usize,
}

impl Frame {
    /// Sets the lengths and the digests. Panics if the PDU has additional header segments, which
    /// a target never sends, or 16 MiB of data.
    pub fn new(pdu: Pdu, digests: Digests) -> Self {
        assert!(
            pdu.additional.is_empty(),
            "a target sends no additional header segments"
        );
        assert!(
            pdu.data.len() < 1 << 24,
            "a data segment length has 24 bits"
        );
        let mut head = [0; HEADER_BYTES + DIGEST_BYTES];
        head[..HEADER_BYTES].copy_from_slice(&pdu.header);
        head[4] = 0;
        head[5..8].copy_from_slice(&(pdu.data.len() as u32).to_be_bytes()[1..]);
        let mut head_bytes = HEADER_BYTES;
        if digests.header {
            let crc = crc32c(&[&head[..HEADER_BYTES]]);
            head[HEADER_BYTES..].copy_from_slice(&crc.to_le_bytes());
            head_bytes += DIGEST_BYTES;
        }
        let mut tail = [0; 3 + DIGEST_BYTES];
        let mut tail_bytes = pdu.data.len().next_multiple_of(4) - pdu.data.len();
        if digests.data && !pdu.data.is_empty() {
            let crc = crc32c(&[&pdu.data, &tail[..tail_bytes]]);
            tail[tail_bytes..][..DIGEST_BYTES].copy_from_slice(&crc.to_le_bytes());
            tail_bytes += DIGEST_BYTES;
        }
        Self {
            head,
            head_bytes,
            data: pdu.data,
            tail,
            tail_bytes,
            sent: 0,
        }
    }

    /// Bytes not yet written.
    pub fn remaining(&self) -> usize {
        self.head_bytes + self.data.len() + self.tail_bytes - self.sent
    }

    /// The pieces not yet written.
    pub fn pieces(&self) -> impl Iterator<Item = IoSlice<'_>> {
        let mut skip = self.sent;
        [
            &self.head[..self.head_bytes],
            &self.data[..],
            &self.tail[..self.tail_bytes],
        ]
        .into_iter()
        .filter_map(move |piece| {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            let rest = &piece[skipped..];
            (!rest.is_empty()).then(|| IoSlice::new(rest))
        })
    }

    /// Notes that bytes were written; returns how many of them were not this frame's.
    pub fn advance(&mut self, written: usize) -> usize {
        let own = written.min(self.remaining());
        self.sent += own;
        written - own
    }
}

/// CRC32C (Castagnoli) of the concatenation of `pieces`.
pub fn crc32c(pieces: &[&[u8]]) -> u32 {
    if let [piece] = pieces {
        return crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, piece) as u32;
    }
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    pieces.iter().for_each(|piece| digest.update(piece));
    digest.finalize() as u32
}

/// A digest on the wire; least significant byte first.
fn digest_at(bytes: &[u8], offset: usize) -> u32 {
    let digest = &bytes[offset..offset + DIGEST_BYTES];
    u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: Digests = Digests {
        header: true,
        data: true,
    };

    fn wire(pdu: &Pdu, digests: Digests) -> Vec<u8> {
        let frame = Frame::new(pdu.clone(), digests);
        let bytes: Vec<u8> = frame.pieces().flat_map(|piece| piece.to_vec()).collect();
        assert_eq!(bytes.len(), frame.remaining());
        bytes
    }

    fn sample(data: &[u8]) -> Pdu {
        let mut pdu = Pdu::new(0x25);
        for (index, byte) in pdu.header.iter_mut().enumerate().skip(8) {
            *byte = index as u8;
        }
        pdu.header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        pdu.data = Bytes::copy_from_slice(data);
        pdu
    }

    #[test]
    fn crc32c_vectors_on_the_wire() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        let vectors: [(&[u8], [u8; 4]); 4] = [
            (&[0; 32], [0xaa, 0x36, 0x91, 0x8a]),
            (&[0xff; 32], [0x43, 0xab, 0xa8, 0x62]),
            (&ascending, [0x4e, 0x79, 0xdd, 0x46]),
            (&descending, [0x5c, 0xdb, 0x3f, 0x11]),
        ];
        for (data, digest) in vectors {
            assert_eq!(crc32c(&[data]).to_le_bytes(), digest);
            assert_eq!(crc32c(&[&data[..5], &data[5..]]).to_le_bytes(), digest);
        }
        assert_eq!(crc32c(&[b"123456789"]), 0xe306_9283);
    }

    #[test]
    fn a_pdu_split_at_every_byte_decodes_to_itself() {
        for (digests, length) in [(Digests::default(), 5), (BOTH, 7), (BOTH, 0), (BOTH, 8)] {
            let pdu = sample(&vec![0xa5; length]);
            let bytes = wire(&pdu, digests);
            let decoder = Decoder {
                digests,
                data_bytes_max: 64,
            };
            for split in 0..bytes.len() {
                let mut buffer = BytesMut::from(&bytes[..split]);
                assert_eq!(decoder.decode(&mut buffer), Ok(None), "split at {split}");
                let missing = decoder.missing(&buffer);
                assert!(missing > 0 && missing <= bytes.len() - split);
                buffer.extend_from_slice(&bytes[split..]);
                assert_eq!(decoder.decode(&mut buffer), Ok(Some(pdu.clone())));
                assert!(buffer.is_empty());
            }
        }
    }

    #[test]
    fn any_flipped_bit_of_a_digested_pdu_is_noticed() {
        let bytes = wire(&sample(&[1, 2, 3, 4, 5]), BOTH);
        let decoder = Decoder {
            digests: BOTH,
            data_bytes_max: 64,
        };
        for bit in 0..bytes.len() * 8 {
            let mut damaged = BytesMut::from(&bytes[..]);
            damaged[bit / 8] ^= 1 << (bit % 8);
            damaged.extend_from_slice(&[0; 128]);
            assert!(
                !matches!(decoder.decode(&mut damaged), Ok(Some(_))),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn lengths_are_refused_before_their_bytes_arrive() {
        let decoder = Decoder {
            digests: Digests::default(),
            data_bytes_max: 8192,
        };
        let mut header = [0; HEADER_BYTES];
        header[5..8].copy_from_slice(&[0, 0x20, 1]);
        let refused = decoder.decode(&mut BytesMut::from(&header[..]));
        assert_eq!(
            refused,
            Err(FrameError::DataTooLong {
                length: 8193,
                limit: 8192
            })
        );
        header[4] = 70;
        let refused = decoder.decode(&mut BytesMut::from(&header[..]));
        assert_eq!(refused, Err(FrameError::AdditionalTooLong { length: 280 }));
    }

    #[test]
    fn partial_writes_resume_where_they_stopped() {
        let frame = Frame::new(sample(&[9; 6]), BOTH);
        let whole: Vec<u8> = frame.pieces().flat_map(|piece| piece.to_vec()).collect();
        for split in 0..=whole.len() {
            let mut rest = frame.clone();
            assert_eq!(rest.advance(split), 0);
            let bytes: Vec<u8> = rest.pieces().flat_map(|piece| piece.to_vec()).collect();
            assert_eq!(bytes, whole[split..]);
        }
        assert_eq!(frame.clone().advance(whole.len() + 3), 3);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>, header: bool, data: bool) {
            let decoder = Decoder { digests: Digests { header, data }, data_bytes_max: 300 };
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
            let _ = decoder.missing(&buffer);
        }
    }
}
