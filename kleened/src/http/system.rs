//! The daemon itself.

use axum::response::Response;

use super::Routes;
use super::prefer::Call;
use super::verb::Verb;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(Verb::Info, info)
}

async fn info(call: Call) -> Response {
    call.done(call.engine.system())
}
