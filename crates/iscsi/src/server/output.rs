//! The PDUs that wait to be written to a connection.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use tokio::net::TcpStream;

use crate::pdu::Pdu;
use crate::pdu::framing::{Digests, Frame};

/// Most pieces given to one system call: two or three for each PDU, so that all answers to a
/// full queue leave together.
const PIECES_MAX: usize = 256;

/// A queue of frames; their data is never copied.
#[derive(Default)]
pub(super) struct Output {
    frames: VecDeque<Frame>,
    bytes: usize,
}

impl Output {
    pub(super) fn push(&mut self, pdu: Pdu, digests: Digests) {
        let frame = Frame::new(pdu, digests);
        self.bytes += frame.remaining();
        self.frames.push_back(frame);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes as much as the socket takes without waiting.
    pub(super) fn write_to(&mut self, stream: &TcpStream) -> io::Result<()> {
        while !self.frames.is_empty() {
            let pieces: Vec<IoSlice<'_>> = self
                .frames
                .iter()
                .flat_map(Frame::pieces)
                .take(PIECES_MAX)
                .collect();
            match stream.try_write_vectored(&pieces) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(frame) = self.frames.front_mut() {
            written = frame.advance(written);
            if frame.remaining() > 0 {
                return;
            }
            self.frames.pop_front();
        }
    }
}
