//! Execution instances.

use axum::response::Response;
use kleened_api::IdReply;
use kleened_api::exec::{ExecConfig, ExecStopQuery};

use super::prefer::Call;
use super::request::{Name, Query, Sent};
use super::socket::Upgrade;
use super::verb::Verb;
use super::{Routes, attach};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(Verb::ExecCreate, create).on(Verb::ExecStart, start).on(Verb::ExecStop, stop)
}

async fn create(call: Call, Sent(mut config): Sent<ExecConfig>) -> Response {
    config.container_id = call.scoped(config.container_id);
    call.found(call.engine.create_exec(config).map(|id| IdReply { id }))
}

async fn start(call: Call, upgrade: Upgrade) -> Response {
    upgrade.run(move |socket| attach::run(call.engine, socket, call.stopping))
}

async fn stop(call: Call, Name(id): Name, Query(query): Query<ExecStopQuery>) -> Response {
    let stopped = call.engine.stop_exec(&id, query.force_stop, query.stop_container).await;
    call.found(stopped.map(|id| IdReply { id }))
}
