//! What a connection has received and not used up yet.

use std::io;

use bytes::BytesMut;
use tokio::net::TcpStream;

use crate::pdu::framing::Decoder;

/// Space made for received bytes at a time: it doubles when a call filled it and halves when most
/// of it stayed empty, so that a busy connection takes a whole queue of commands with one call
/// and an idle one holds little memory. Small data segments share a chunk; a long one gets a
/// chunk of its own size.
const CHUNK_BYTES_MIN: usize = 16 << 10;
const CHUNK_BYTES_MAX: usize = 256 << 10;

/// Received bytes that make no whole PDU yet, and the room for more.
pub(super) struct Input {
    pub(super) buffer: BytesMut,
    chunk_bytes: usize,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            buffer: BytesMut::new(),
            chunk_bytes: CHUNK_BYTES_MIN,
        }
    }
}

impl Input {
    /// Reads what the socket has, making room for the rest of the first PDU.
    pub(super) fn receive(&mut self, stream: &TcpStream, decoder: &Decoder) -> io::Result<()> {
        let buffer = &mut self.buffer;
        let missing = decoder.missing(buffer);
        if buffer.capacity() - buffer.len() < missing.max(self.chunk_bytes / 2) {
            buffer.reserve(missing.max(self.chunk_bytes));
        }
        let room = buffer.capacity() - buffer.len();
        match stream.try_read_buf(buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                if read == room {
                    self.chunk_bytes = (self.chunk_bytes * 2).min(CHUNK_BYTES_MAX);
                } else if read < self.chunk_bytes / 8 {
                    self.chunk_bytes = (self.chunk_bytes / 2).max(CHUNK_BYTES_MIN);
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}
