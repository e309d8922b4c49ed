//! Networks. There are none: Kleene's client, which asks for them, is told so in its terms.

use axum::body::Bytes;
use axum::response::Response;

use super::Routes;
use super::prefer::Call;
use super::request::Name;
use super::verb::Verb;
use crate::error::{Error, Kind};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(Verb::NetworkList, none)
        .on(Verb::NetworkPrune, none)
        .on(Verb::NetworkCreate, create)
        .on(Verb::NetworkConnect, unknown)
        .on(Verb::NetworkInspect, inspect)
        .on(Verb::NetworkRemove, inspect)
        .on(Verb::NetworkDisconnect, unknown)
}

async fn none(call: Call) -> Response {
    call.done([(); 0])
}

async fn create(call: Call, _: Bytes) -> Response {
    let text = "there are no networks yet: use the network driver 'host' or 'disabled'";
    call.failed(&Error::Unsupported(text.into()))
}

async fn inspect(call: Call, Name(name): Name) -> Response {
    call.failed(&Error::NotFound { kind: Kind::Network, name })
}

async fn unknown(call: Call, _: Bytes) -> Response {
    call.failed(&Error::NotFound { kind: Kind::Network, name: String::new() })
}
