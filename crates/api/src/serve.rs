//! Serves the API's routes, within limits that hold before anything is known of the caller.

#![allow(
    clippy::disallowed_methods,
    reason = "a server on the host's sockets: it never runs under the simulator"
)]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use holdfast_runtime::host::timed;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

/// Connections at once; more wait in the operating system's queue.
const CONNECTIONS_MAX: usize = 128;
/// From one request's end, or the connection's begin, to the next request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// A whole connection, however busy: ends those that send a body for ever.
const CONNECTION_LIMIT: Duration = Duration::from_secs(600);
/// After a failed `accept`: it fails for want of descriptors or memory, and at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `routes` for as long as it is polled.
pub async fn serve(listener: TcpListener, routes: Router) -> Infallible {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = connections.clone().acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let conversation = converse(stream, routes.clone(), permit);
                tokio::spawn(timed("api-connection", Box::pin(conversation)));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the API");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, routes: Router, _permit: OwnedSemaphorePermit) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    match timeout(CONNECTION_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the API ended"),
        Err(_) => tracing::debug!("a connection to the API outlasted its limit"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::requests::RequestSender;
    use crate::routes::{Access, router};

    /// An API without a node behind it.
    async fn started() -> (SocketAddr, tokio::sync::mpsc::Receiver<crate::Request>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, requests) = RequestSender::channel();
        tokio::spawn(serve(listener, router(sender, Access::Loopback)));
        (address, requests)
    }

    async fn answer(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn whatever_is_asked_the_answer_is_a_problem() {
        let (address, requests) = started().await;
        drop(requests);
        for (request, status) in [
            ("GET /v1/nothing HTTP/1.1\r\nHost: localhost", "404"),
            ("PUT /v1/volumes HTTP/1.1\r\nHost: localhost", "405"),
            ("GET /v1/nodes/x HTTP/1.1\r\nHost: localhost", "400"),
            ("GET /v1/volumes HTTP/1.1\r\nHost: evil.example", "403"),
            ("GET /v1/volumes HTTP/1.1\r\nHost: localhost", "503"),
            (
                "POST /v1/volumes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2",
                "415",
            ),
        ] {
            let text = answer(
                address,
                &format!("{request}\r\nConnection: close\r\n\r\n{{}}"),
            )
            .await;
            assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{text}");
            assert!(text.contains("application/problem+json"), "{text}");
            assert!(text.contains("\"hint\""), "{text}");
        }
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        let (address, _requests) = started().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let line = format!("X-Long: {}\r\n", "x".repeat(1000));
        let mut request = String::from("GET /v1/volumes HTTP/1.1\r\n");
        request.extend(std::iter::repeat_n(line, 40));
        // It may be closed before all is sent.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text).await;
        assert!(!text.starts_with(b"HTTP/1.1 2"));
    }
}
