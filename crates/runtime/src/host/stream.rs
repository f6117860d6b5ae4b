//! One TLS connection that carries frames: the greeting's step-by-step exchange, and the sockets.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::frame::{Decoder, FrameError, GREETING_BYTES_MAX, Kind};
use super::problem::LinkProblem;
use crate::links::Frame;

/// rustls reads 4 KiB at a time; this makes one system call of sixteen.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Sent data that stays unacknowledged this long breaks the connection.
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(2);

pub(super) type Tls = TlsStream<BufReader<TcpStream>>;

/// A connection and what was read of it but not yet taken.
pub(super) struct FrameStream {
    pub(super) tls: Tls,
    pub(super) decoder: Decoder,
}

impl FrameStream {
    /// Starts with the limit for greetings.
    pub(super) fn new(tls: Tls) -> Self {
        Self {
            tls,
            decoder: Decoder::new(GREETING_BYTES_MAX),
        }
    }

    /// Sends bytes and flushes.
    pub(super) async fn send(&mut self, bytes: &Bytes) -> Result<(), LinkProblem> {
        self.tls.write_all(bytes).await?;
        Ok(self.tls.flush().await?)
    }

    /// The next frame. Cancelling loses nothing.
    pub(super) async fn receive(&mut self) -> Result<(Kind, Frame), LinkProblem> {
        loop {
            if let Some(frame) = self.decoder.next()? {
                return Ok(frame);
            }
            let len = poll_fn(|context| {
                let tls = Pin::new(&mut self.tls);
                tls.poll_fill_buf(context).map_ok(|bytes| {
                    self.decoder.extend(bytes);
                    bytes.len()
                })
            })
            .await?;
            if len == 0 {
                return Err(LinkProblem::Closed);
            }
            Pin::new(&mut self.tls).consume(len);
        }
    }

    /// The next frame, which must be of the given kind.
    pub(super) async fn expect(&mut self, expected: Kind) -> Result<Bytes, LinkProblem> {
        let (kind, frame) = self.receive().await?;
        if kind == expected {
            return Ok(frame.header);
        }
        Err(match kind {
            Kind::Refuse => match super::frame::LinkRefusal::decode(&frame.header) {
                Ok(refusal) => LinkProblem::RefusedByPeer(refusal),
                Err(error) => error.into(),
            },
            Kind::Data
            | Kind::Ping
            | Kind::Hello
            | Kind::Start
            | Kind::JoinRequest
            | Kind::JoinReply => FrameError::Kind(kind as u8).into(),
        })
    }

    /// Sends a last message, if the peer still takes it, and closes.
    pub(super) async fn close_with(mut self, bytes: &Bytes) {
        if self.send(bytes).await.is_ok() {
            // The peer may be gone; there is nobody left to tell.
            let _ = self.tls.shutdown().await;
        }
    }
}

/// Connects to `host:port`, trying each address that the name has.
pub(super) async fn connect(address: &str) -> Result<TcpStream, LinkProblem> {
    let mut problem = LinkProblem::UnknownAddress;
    let resolved = tokio::net::lookup_host(address).await;
    for address in resolved.map_err(|_| LinkProblem::UnknownAddress)? {
        match connect_to(address).await {
            Ok(stream) => return Ok(stream),
            // A refusal proves something only if no other address may have the process.
            Err(other) if problem == LinkProblem::UnknownAddress => problem = other,
            Err(other) if other != LinkProblem::NotRunning => problem = other,
            Err(_) => {}
        }
    }
    Err(problem)
}

/// Prepares a connected socket for small messages and silent peers.
pub(super) fn prepare(stream: TcpStream) -> io::Result<BufReader<TcpStream>> {
    stream.set_nodelay(true)?;
    let limit_ms = UNACKNOWLEDGED_LIMIT.as_millis() as libc::c_uint;
    // SAFETY: the option's value is a `c_uint`, read during the call; the descriptor is open.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            (&raw const limit_ms).cast(),
            size_of::<libc::c_uint>() as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(BufReader::with_capacity(READ_BUFFER_BYTES, stream))
}

async fn connect_to(address: SocketAddr) -> Result<TcpStream, LinkProblem> {
    let stream = TcpStream::connect(address).await?;
    // With nobody listening on a local port, the kernel may pick that very port for our end and
    // connect the socket to itself.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(LinkProblem::NotRunning);
    }
    Ok(stream)
}
