//! The data that an initiator sends for one write: immediate, unsolicited, then asked for by R2T
//! (RFC 7143 4.2.5.2). Data comes in order (DataPDUInOrder and DataSequenceInOrder are Yes) and
//! one burst at a time (MaxOutstandingR2T is 1), so what has arrived is always a prefix.

use bytes::{Bytes, BytesMut};
use holdfast_scsi::Sense;
use thiserror::Error;

use crate::pdu::{FINAL, Pdu, RESERVED_TAG};

/// Why a Data-Out does not fit. The command fails with [`TransferError::sense`] and nothing of it
/// reaches the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TransferError {
    /// No data is expected, or for another transfer tag.
    #[error("data that was not asked for")]
    Unexpected,
    /// DataSN is not the next one.
    #[error("data sequence number out of order")]
    Number,
    /// The buffer offset is not where the last data ended.
    #[error("data offset out of order")]
    Offset,
    /// More data than was asked for or allowed.
    #[error("more data than was asked for")]
    TooMuch,
    /// The final PDU came before all the data that was asked for.
    #[error("less data than was asked for")]
    TooLittle,
    /// All the data came without the final bit.
    #[error("the last data does not say that it is final")]
    NotFinal,
}

impl TransferError {
    /// The sense data that the command fails with (RFC 7143 11.4.7.2, SPC-4 annex D).
    pub const fn sense(self) -> Sense {
        match self {
            Self::Unexpected | Self::TooMuch => Sense::UNEXPECTED_UNSOLICITED,
            Self::TooLittle => Sense::NOT_ENOUGH_UNSOLICITED,
            Self::Offset => Sense::DATA_OFFSET_ERROR,
            Self::Number | Self::NotFinal => Sense::DATA_PHASE_ERROR,
        }
    }
}

#[derive(Debug)]
enum Open {
    /// Unsolicited Data-Out PDUs may come, up to this offset.
    Unsolicited {
        limit: u32,
    },
    /// An R2T is outstanding.
    Burst {
        tag: u32,
        end: u32,
    },
    Nothing,
}

/// Shorter data is copied if it is to be kept for long. A segment is a slice of a receive buffer of
/// 64 KiB and keeps all of it: one byte of data in each of many buffers would hold as many buffers.
const COPIED_BYTES_MAX: usize = 16 << 10;

/// Data that may be kept for long without keeping what it came with.
pub(super) fn compact(data: Bytes) -> Bytes {
    if data.len() > COPIED_BYTES_MAX {
        data
    } else {
        Bytes::copy_from_slice(&data)
    }
}

/// A transfer under way.
#[derive(Debug)]
pub(super) struct Transfer {
    wanted: u32,
    received: u32,
    segments: Vec<Bytes>,
    /// Short segments that came after those, joined.
    joined: BytesMut,
    open: Open,
    next_number: u32,
    bursts: u32,
}

impl Transfer {
    /// A transfer of which the command wants `wanted` bytes and has `immediate`. Unsolicited
    /// data may follow up to offset `unsolicited`, if that is given.
    pub(super) fn new(wanted: u32, immediate: Bytes, unsolicited: Option<u32>) -> Self {
        let open = unsolicited.map_or(Open::Nothing, |limit| Open::Unsolicited { limit });
        let mut transfer = Self {
            wanted,
            received: 0,
            segments: Vec::new(),
            joined: BytesMut::new(),
            open,
            next_number: 0,
            bursts: 0,
        };
        transfer.keep(immediate);
        transfer
    }

    /// Whether nothing more is to come.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self.open, Open::Nothing) && self.received >= self.wanted
    }

    /// Bytes still to be asked for; zero while unsolicited data or a burst is open.
    pub(super) fn unasked(&self) -> u32 {
        match self.open {
            Open::Nothing => self.wanted.saturating_sub(self.received),
            Open::Unsolicited { .. } | Open::Burst { .. } => 0,
        }
    }

    /// Number of R2Ts sent.
    pub(super) fn bursts(&self) -> u32 {
        self.bursts
    }

    /// Opens the next burst: the number, offset and length of its R2T.
    pub(super) fn ask(&mut self, tag: u32, burst_bytes_max: u32) -> (u32, u32, u32) {
        let length = self.unasked().min(burst_bytes_max);
        assert!(length > 0, "there is data left to ask for");
        self.open = Open::Burst {
            tag,
            end: self.received + length,
        };
        self.bursts += 1;
        (self.bursts - 1, self.received, length)
    }

    /// Takes a Data-Out.
    pub(super) fn take(&mut self, pdu: &Pdu) -> Result<(), TransferError> {
        let (tag, number, offset) = (pdu.u32_at(20), pdu.u32_at(36), pdu.u32_at(40));
        let end = match self.open {
            Open::Unsolicited { limit } if tag == RESERVED_TAG => limit,
            Open::Burst { tag: asked, end } if tag == asked => end,
            Open::Unsolicited { .. } | Open::Burst { .. } | Open::Nothing => {
                return Err(TransferError::Unexpected);
            }
        };
        if number != self.next_number {
            return Err(TransferError::Number);
        }
        if offset != self.received {
            return Err(TransferError::Offset);
        }
        // `received` never passes `end`, so the difference does not wrap.
        if pdu.data.len() > (end - self.received) as usize {
            return Err(TransferError::TooMuch);
        }
        self.keep(pdu.data.clone());
        self.next_number += 1;
        let solicited = matches!(self.open, Open::Burst { .. });
        if pdu.flag(FINAL) {
            if solicited && self.received < end {
                return Err(TransferError::TooLittle);
            }
            self.open = Open::Nothing;
            self.next_number = 0;
        } else if self.received == end {
            return Err(TransferError::NotFinal);
        }
        Ok(())
    }

    /// The data: as it came if it came in one piece.
    pub(super) fn into_data(mut self) -> Bytes {
        if self.segments.len() == 1 && self.joined.is_empty() {
            return self.segments.remove(0);
        }
        if self.segments.is_empty() {
            return self.joined.freeze();
        }
        let mut data = BytesMut::with_capacity(self.wanted as usize);
        self.segments
            .iter()
            .for_each(|segment| data.extend_from_slice(segment));
        data.extend_from_slice(&self.joined);
        data.freeze()
    }

    /// Keeps what the command wants of the data that came.
    fn keep(&mut self, mut data: Bytes) {
        let length = data.len() as u32;
        let room = self.wanted.saturating_sub(self.received) as usize;
        data.truncate(room);
        // All of the data in one piece goes on as it is.
        let whole = !data.is_empty() && data.len() as u32 == self.wanted;
        if data.len() > COPIED_BYTES_MAX || whole {
            if !self.joined.is_empty() {
                self.segments.push(self.joined.split().freeze());
            }
            self.segments.push(data);
        } else {
            self.joined.extend_from_slice(&data);
        }
        self.received += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_out(tag: u32, number: u32, offset: u32, data: &'static [u8], last: bool) -> Pdu {
        let mut pdu = Pdu::new(5);
        pdu.header[1] = if last { FINAL } else { 0 };
        pdu.put_u32(20, tag);
        pdu.put_u32(36, number);
        pdu.put_u32(40, offset);
        pdu.data = Bytes::from_static(data);
        pdu
    }

    #[test]
    fn immediate_unsolicited_and_solicited_data_join() {
        let mut transfer = Transfer::new(8, Bytes::from_static(b"ab"), Some(4));
        assert_eq!(transfer.unasked(), 0);
        transfer
            .take(&data_out(RESERVED_TAG, 0, 2, b"cd", true))
            .unwrap();
        assert_eq!(transfer.unasked(), 4);
        assert_eq!(transfer.ask(7, 3), (0, 4, 3));
        transfer.take(&data_out(7, 0, 4, b"e", false)).unwrap();
        transfer.take(&data_out(7, 1, 5, b"fg", true)).unwrap();
        assert_eq!(transfer.ask(8, 3), (1, 7, 1));
        transfer.take(&data_out(8, 0, 7, b"h", true)).unwrap();
        assert!(transfer.is_complete());
        assert_eq!(transfer.into_data(), "abcdefgh");
    }

    #[test]
    fn one_piece_is_not_copied() {
        let data = Bytes::from(vec![1_u8; 512]);
        let transfer = Transfer::new(512, data.clone(), None);
        assert!(transfer.is_complete());
        assert_eq!(transfer.into_data().as_ptr(), data.as_ptr());
    }

    #[test]
    fn short_segments_do_not_keep_the_buffers_that_they_came_in() {
        let buffers: Vec<Bytes> = (0..8).map(|byte| vec![byte; 64 << 10].into()).collect();
        let mut transfer = Transfer::new(8, buffers[0].slice(..1), Some(8));
        for (number, buffer) in (0..).zip(&buffers[1..]) {
            let mut pdu = data_out(RESERVED_TAG, number, number + 1, b"", number == 6);
            pdu.data = buffer.slice(9..10);
            transfer.take(&pdu).unwrap();
        }
        for buffer in buffers {
            assert!(buffer.is_unique(), "one byte keeps 64 KiB");
        }
        assert_eq!(transfer.into_data(), [0, 1, 2, 3, 4, 5, 6, 7][..]);
    }

    #[test]
    fn long_and_short_segments_join_in_their_order() {
        let long: Bytes = vec![1; 20_000].into();
        let mut transfer = Transfer::new(40_006, Bytes::from_static(b"abc"), Some(40_006));
        for (number, offset, data) in [
            (0, 3, long.clone()),
            (1, 20_003, Bytes::from_static(b"def")),
            (2, 20_006, long.clone()),
        ] {
            let mut pdu = data_out(RESERVED_TAG, number, offset, b"", number == 2);
            pdu.data = data;
            transfer.take(&pdu).unwrap();
        }
        let expected = [b"abc", &long[..], b"def", &long[..]].concat();
        assert_eq!(transfer.into_data(), expected);
    }

    #[test]
    fn data_beyond_what_the_command_wants_is_dropped() {
        let mut transfer = Transfer::new(3, Bytes::from_static(b"ab"), Some(6));
        transfer
            .take(&data_out(RESERVED_TAG, 0, 2, b"cdef", true))
            .unwrap();
        assert!(transfer.is_complete());
        assert_eq!(transfer.into_data(), "abc");
    }

    #[test]
    fn data_out_of_order_or_out_of_bounds_is_refused() {
        let burst = || {
            let mut transfer = Transfer::new(8, Bytes::new(), None);
            transfer.ask(7, 4);
            transfer
        };
        for (pdu, error) in [
            (data_out(6, 0, 0, b"abcd", true), TransferError::Unexpected),
            (
                data_out(RESERVED_TAG, 0, 0, b"abcd", true),
                TransferError::Unexpected,
            ),
            (data_out(7, 1, 0, b"abcd", true), TransferError::Number),
            (data_out(7, 0, 1, b"abcd", true), TransferError::Offset),
            (data_out(7, 0, 0, b"abcde", true), TransferError::TooMuch),
            (data_out(7, 0, 0, b"abc", true), TransferError::TooLittle),
            (data_out(7, 0, 0, b"abcd", false), TransferError::NotFinal),
        ] {
            assert_eq!(burst().take(&pdu), Err(error));
        }
    }
}
