//! Connections: how many there may be, and how long one may take to say what it wants.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt;

use super::access::Peer;
use super::listen::Listener;
use super::transfer::Stopping;

/// What clients may do to a server by doing nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// How many connections there may be, websockets among them. Further ones wait.
    pub(super) connections: u32,
    /// How long a request's head may take, and how long the next may keep a connection open.
    pub(super) head: Duration,
}

/// The daemon's.
pub(super) const LIMITS: Limits = Limits { connections: 1024, head: Duration::from_secs(30) };

/// A connection's place among those that there may be. It is free again when the last copy is gone.
#[derive(Debug, Clone)]
pub(super) struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
}

/// Requests are answered until the server stops. Then the socket is gone, and this returns when all
/// connections have come to their end.
pub(super) async fn serve(
    mut listener: Listener,
    router: Router,
    mut stopping: Stopping,
    limits: Limits,
) {
    let places = Arc::new(Semaphore::new(limits.connections as usize));
    loop {
        let next = async {
            // It is never closed.
            let permit = Arc::clone(&places).acquire_owned().await.ok()?;
            Some((Place { _permit: Arc::new(permit) }, listener.accept().await))
        };
        tokio::select! {
            biased;
            () = stopping.come() => break,
            Some((place, stream)) = next => {
                tokio::spawn(answer(stream, router.clone(), place, stopping.clone(), limits));
            }
        }
    }
    drop(listener);
    let _ = places.acquire_many(limits.connections).await;
}

async fn answer(
    stream: UnixStream,
    router: Router,
    place: Place,
    mut stopping: Stopping,
    limits: Limits,
) {
    let peer = Peer::of(&stream);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(place.clone());
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopping.come() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection broke off: {error}");
    }
}

#[cfg(test)]
mod tests {
    use axum::Extension;
    use axum::routing::get;
    use futures_util::FutureExt;
    use kleened_api::volume::Mode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::{mpsc, watch};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::http::listen::{Permit, bind};

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

    struct Served {
        folder: tempfile::TempDir,
        stop: watch::Sender<bool>,
        serving: JoinHandle<()>,
        places: mpsc::UnboundedReceiver<Place>,
    }

    impl Served {
        /// A server whose only route hands its place over.
        fn new(limits: Limits) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let listener =
                bind(&folder.path().join("s"), Permit { mode: Mode(0o600), group: None }).unwrap();
            let (sender, places) = mpsc::unbounded_channel();
            let handler = async move |Extension(place): Extension<Place>| {
                sender.send(place).unwrap();
                "here"
            };
            let router = Router::new().route("/", get(handler));
            let (stop, stopping) = watch::channel(false);
            let serving = tokio::spawn(serve(listener, router, Stopping::new(stopping), limits));
            Self { folder, stop, serving, places }
        }

        async fn connect(&self) -> UnixStream {
            UnixStream::connect(self.folder.path().join("s")).await.unwrap()
        }
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_ends_the_connection() {
        let served = Served::new(Limits { head: Duration::from_millis(20), ..LIMITS });
        for begun in [&b""[..], b"GET / HT"] {
            let mut client = served.connect().await;
            client.write_all(begun).await.unwrap();
            let mut answer = Vec::new();
            let end = client.read_to_end(&mut answer);
            tokio::time::timeout(Duration::from_secs(20), end).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn too_many_connections_wait_and_a_place_is_one_until_its_last_copy_is_gone() {
        let mut served = Served::new(Limits { connections: 1, ..LIMITS });
        let mut first = served.connect().await;
        let mut second = served.connect().await;
        second.write_all(REQUEST).await.unwrap();
        first.write_all(REQUEST).await.unwrap();
        let mut buffer = [0; 1024];
        assert!(first.read(&mut buffer).await.unwrap() > 0);
        let place = served.places.recv().await.unwrap();
        drop(first);
        // What a websocket holds when its connection is none of HTTP's any more.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(second.read(&mut buffer).now_or_never().map(Result::unwrap), None);
        drop(place);
        assert!(second.read(&mut buffer).await.unwrap() > 0);
        let place = served.places.recv().await.unwrap();

        served.stop.send_replace(true);
        assert_eq!(second.read(&mut buffer).await.unwrap(), 0);
        assert!(!served.serving.is_finished());
        drop(place);
        served.serving.await.unwrap();
    }
}
