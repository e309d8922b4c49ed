//! HTTP: one file per resource, each of which parses, calls the verb, and replies.
//!
//! `verb` is the table of verbs; `prefer` holds every difference between an exact client and
//! Kleene's; `access` says who may do what; `attach` and `socket` are the websockets.

mod access;
mod attach;
mod connection;
mod container;
mod create;
mod exec;
mod image;
mod listen;
mod network;
mod operation;
mod prefer;
mod request;
mod snapshot;
mod socket;
mod system;
mod transfer;
mod verb;
mod volume;

use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::handler::Handler;
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use tokio::sync::watch;
use tower::ServiceExt;

pub use access::Access;
pub use listen::{Listener, Permit, bind, is_socket, permit};

use kleened_api::ProjectName;
use kleened_api::routes::PROJECT;

use crate::engine::Engine;
use access::Peer;
use prefer::{Call, Manner};
use transfer::Stopping;
use verb::Verb;

/// What the daemon serves.
#[derive(Debug)]
pub struct Server {
    engine: Arc<Engine>,
    access: RwLock<Access>,
    stopping: watch::Sender<bool>,
}

impl Server {
    /// A server of that engine.
    #[must_use]
    pub fn new(engine: Arc<Engine>, access: Access) -> Arc<Self> {
        let (stopping, _) = watch::channel(false);
        Arc::new(Self { engine, access: RwLock::new(access), stopping })
    }

    /// The configured users are these from now on.
    pub fn set_access(&self, access: Access) {
        *self.access.write().unwrap_or_else(PoisonError::into_inner) = access;
    }

    /// Clients are answered until [`stop`](Self::stop) is called. Then no new ones are let in,
    /// attached ones are told, what is on its way in or out is cut, and this returns when all are
    /// answered.
    pub async fn serve(self: &Arc<Self>, listener: Listener) {
        connection::serve(listener, router(self), self.stopping(), connection::LIMITS).await;
    }

    fn stopping(&self) -> Stopping {
        Stopping::new(self.stopping.subscribe())
    }

    /// [`serve`](Self::serve) comes to an end.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }
}

/// The routes, one router for each method: a volume may well be called `list`.
struct Routes {
    server: Arc<Server>,
    get: Router<Arc<Server>>,
    post: Router<Arc<Server>>,
    delete: Router<Arc<Server>>,
}

impl Routes {
    /// The verb is handled by `handler`, for callers who may.
    fn on<H, T>(mut self, verb: Verb, handler: H) -> Self
    where
        H: Handler<T, Arc<Server>>,
        T: 'static,
    {
        let row = verb.row();
        let (router, filter) = match row.method {
            Method::POST => (&mut self.post, MethodFilter::POST),
            Method::DELETE => (&mut self.delete, MethodFilter::DELETE),
            _ => (&mut self.get, MethodFilter::GET),
        };
        let state = (Arc::clone(&self.server), verb);
        let handler = on(filter, handler).layer(middleware::from_fn_with_state(state, admit));
        *router = std::mem::take(router).route(row.route, handler);
        self
    }
}

fn router(server: &Arc<Server>) -> Router {
    let routes = Routes {
        server: Arc::clone(server),
        get: Router::new(),
        post: Router::new(),
        delete: Router::new(),
    };
    let groups = [
        system::routes,
        volume::routes,
        snapshot::routes,
        container::routes,
        exec::routes,
        image::routes,
        network::routes,
        operation::routes,
    ];
    let Routes { server, get, post, delete } =
        groups.into_iter().fold(routes, |routes, group| group(routes));
    let [get, post, delete] = [get, post, delete]
        .map(|router| router.fallback(not_found).with_state(Arc::clone(&server)));
    Router::new().fallback(move |request: Request| {
        let router = match *request.method() {
            Method::GET => Some(get.clone()),
            Method::POST => Some(post.clone()),
            Method::DELETE => Some(delete.clone()),
            _ => None,
        };
        async move {
            match router {
                Some(router) => router.oneshot(request).await.into_response(),
                None => not_found().await.into_response(),
            }
        }
    })
}

/// The answer to an unknown path or method, as Kleene gives it.
async fn not_found() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "not found")
}

/// Lets a caller in who may call the verb, and tells the handler what is called and how to answer.
async fn admit(
    State((server, verb)): State<(Arc<Server>, Verb)>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let manner = Manner::of(request.headers());
    let stopping = server.stopping();
    let project = request.headers().get(PROJECT).map(|value| value.to_str().unwrap_or("?").parse());
    let (project, bad) = match project.transpose() {
        Ok(project) => (project.unwrap_or_default(), None),
        Err(error) => (ProjectName::default(), Some(error)),
    };
    let call = Call { engine: Arc::clone(&server.engine), verb, manner, project, stopping };
    let right = verb.row().right;
    let checked = server.access.read().unwrap_or_else(PoisonError::into_inner).check(peer, right);
    match checked.and_then(|()| bad.map_or(Ok(()), |error| Err(error.into()))) {
        Ok(()) => {
            let path = request.uri().path().to_owned();
            request.extensions_mut().insert(call);
            let response = next.run(request).await;
            tracing::debug!(?verb, path, uid = peer.0, status = response.status().as_u16());
            response
        }
        Err(error) => {
            tracing::warn!(?verb, uid = peer.0, "refused: {error}");
            transfer::drain(request.into_body().into_data_stream()).await;
            call.failed(&error)
        }
    }
}
