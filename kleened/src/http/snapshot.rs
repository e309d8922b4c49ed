//! Snapshots of volumes.

use axum::response::Response;
use kleened_api::snapshot::{
    RestoreConfig, SnapshotConfig, SnapshotFilter, SnapshotProtect, SnapshotRename,
};

use super::Routes;
use super::prefer::Call;
use super::request::{Query, Scoped, Sent};
use super::verb::Verb;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(Verb::SnapshotList, list)
        .on(Verb::SnapshotCreate, create)
        .on(Verb::SnapshotInspect, inspect)
        .on(Verb::SnapshotRename, rename)
        .on(Verb::SnapshotProtect, protect)
        .on(Verb::SnapshotRestore, restore)
        .on(Verb::SnapshotRemove, remove)
}

async fn list(call: Call, Query(mut filter): Query<SnapshotFilter>) -> Response {
    filter.volume = filter.volume.map(|volume| call.scoped(volume));
    call.found(call.engine.snapshots(&call.project, filter).await)
}

async fn create(call: Call, Sent(config): Sent<SnapshotConfig>) -> Response {
    call.changed(call.engine.create_snapshots(&call.project, config)).await
}

async fn inspect(call: Call, Scoped(name): Scoped) -> Response {
    call.found(call.engine.snapshot(&name).await)
}

async fn rename(call: Call, Scoped(name): Scoped, Sent(config): Sent<SnapshotRename>) -> Response {
    call.changed(call.engine.rename_snapshot(&name, config)).await
}

async fn protect(
    call: Call,
    Scoped(name): Scoped,
    Sent(config): Sent<SnapshotProtect>,
) -> Response {
    call.changed(call.engine.protect_snapshot(&name, config)).await
}

async fn restore(call: Call, Scoped(name): Scoped, Sent(config): Sent<RestoreConfig>) -> Response {
    call.changed(call.engine.restore_snapshot(&call.project, &name, config)).await
}

async fn remove(call: Call, Scoped(name): Scoped) -> Response {
    call.changed(call.engine.remove_snapshot(&name)).await
}
