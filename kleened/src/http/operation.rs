//! Operations.

use std::time::Duration;

use axum::response::Response;
use kleened_api::operation::WaitQuery;

use super::Routes;
use super::prefer::Call;
use super::request::{Name, Query};
use super::verb::Verb;

/// The longest that a request is held open, in seconds.
const MAX_WAIT: u32 = 60;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(Verb::Operation, inspect)
}

async fn inspect(call: Call, Name(id): Name, Query(query): Query<WaitQuery>) -> Response {
    let wait = Duration::from_secs(query.wait.min(MAX_WAIT).into());
    call.found(call.engine.operation(&id, wait).await)
}
