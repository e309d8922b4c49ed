//! Snapshots of volumes.

use axum::response::Response;
use kleened_api::snapshot::{SnapshotConfig, SnapshotFilter, SnapshotProtect, SnapshotRename};

use super::Routes;
use super::prefer::Call;
use super::request::{Name, Query, Sent};
use super::verb::Verb;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(Verb::SnapshotList, list)
        .on(Verb::SnapshotCreate, create)
        .on(Verb::SnapshotInspect, inspect)
        .on(Verb::SnapshotRename, rename)
        .on(Verb::SnapshotProtect, protect)
        .on(Verb::SnapshotRemove, remove)
}

async fn list(call: Call, Query(filter): Query<SnapshotFilter>) -> Response {
    call.found(call.engine.snapshots(filter).await)
}

async fn create(call: Call, Sent(config): Sent<SnapshotConfig>) -> Response {
    call.changed(call.engine.create_snapshots(config)).await
}

async fn inspect(call: Call, Name(name): Name) -> Response {
    call.found(call.engine.snapshot(&name).await)
}

async fn rename(call: Call, Name(name): Name, Sent(config): Sent<SnapshotRename>) -> Response {
    call.changed(call.engine.rename_snapshot(&name, config)).await
}

async fn protect(call: Call, Name(name): Name, Sent(config): Sent<SnapshotProtect>) -> Response {
    call.changed(call.engine.protect_snapshot(&name, config)).await
}

async fn remove(call: Call, Name(name): Name) -> Response {
    call.changed(call.engine.remove_snapshot(&name)).await
}
