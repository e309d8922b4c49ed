//! Containers.

use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use kleened_api::container::{ContainerConfig, ListQuery, LogsQuery, StopQuery};
use kleened_api::image::ImageConfig;
use kleened_api::stream::LOG_MEDIA_TYPE;
use kleened_api::volume::PruneQuery;

use super::Routes;
use super::prefer::Call;
use super::request::{Query, Scoped, Sent};
use super::verb::Verb;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(Verb::ContainerList, list)
        .on(Verb::ContainerCreate, create)
        .on(Verb::ContainerPrune, prune)
        .on(Verb::ContainerInspect, inspect)
        .on(Verb::ContainerStop, stop)
        .on(Verb::ContainerUpdate, update)
        .on(Verb::ContainerWait, wait)
        .on(Verb::ContainerLogs, logs)
        .on(Verb::ContainerSave, save)
        .on(Verb::ContainerRemove, remove)
}

async fn list(call: Call, Query(query): Query<ListQuery>) -> Response {
    call.done(call.engine.containers(call.unless(query.all_projects).as_ref(), query.all))
}

async fn create(call: Call, Sent(config): Sent<ContainerConfig>) -> Response {
    call.changed(call.engine.create_container(&call.project, call.container(config))).await
}

async fn prune(call: Call, Query(query): Query<PruneQuery>) -> Response {
    let project = call.unless(query.all_projects);
    call.changed(Ok(call.engine.prune_containers(project.as_ref(), query.dry_run))).await
}

async fn inspect(call: Call, Scoped(name): Scoped) -> Response {
    call.found(call.engine.container(&name))
}

async fn stop(call: Call, Scoped(name): Scoped, Query(query): Query<StopQuery>) -> Response {
    let time = query.time.map(|seconds| Duration::from_secs(seconds.into()));
    call.changed(call.engine.stop_container(&name, time)).await
}

async fn update(call: Call, Scoped(name): Scoped, Sent(config): Sent<ContainerConfig>) -> Response {
    call.changed(call.engine.update_container(&name, call.container(config))).await
}

async fn wait(call: Call, Scoped(name): Scoped) -> Response {
    call.found(call.engine.wait_container(&name).await)
}

async fn logs(call: Call, Scoped(name): Scoped, Query(query): Query<LogsQuery>) -> Response {
    match call.engine.logs(&name, query).await {
        Ok(log) => {
            ([(header::CONTENT_TYPE, LOG_MEDIA_TYPE)], Body::from_stream(call.stopping.cut(log)))
                .into_response()
        }
        Err(error) => call.failed(&error),
    }
}

async fn save(call: Call, Scoped(name): Scoped, Query(config): Query<ImageConfig>) -> Response {
    call.changed(call.engine.save_container(&name, config)).await
}

async fn remove(call: Call, Scoped(name): Scoped) -> Response {
    call.changed(call.engine.remove_container(&name)).await
}
