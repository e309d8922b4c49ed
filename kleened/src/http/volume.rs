//! Volumes.

use axum::response::Response;
use kleened_api::attach::{AttachConfig, DetachConfig};
use kleened_api::volume::{
    AdoptConfig, InspectQuery, PruneQuery, RemoveQuery, VolumeConfig, VolumeFilter,
};

use super::Routes;
use super::prefer::Call;
use super::request::{Query, Scoped, Sent};
use super::verb::Verb;
use crate::engine::profiles;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(Verb::VolumeList, list)
        .on(Verb::VolumeNames, names)
        .on(Verb::VolumeProfiles, list_profiles)
        .on(Verb::VolumeCreate, create)
        .on(Verb::VolumeAdopt, adopt)
        .on(Verb::VolumePrune, prune)
        .on(Verb::VolumeInspect, inspect)
        .on(Verb::VolumeAttach, attach)
        .on(Verb::VolumeDetach, detach)
        .on(Verb::VolumeRemove, remove)
}

async fn list(call: Call, Query(filter): Query<VolumeFilter>) -> Response {
    call.found(call.engine.volumes(&call.project, filter).await)
}

async fn names(call: Call, Query(filter): Query<VolumeFilter>) -> Response {
    call.found(call.engine.volume_names(&call.project, &filter).await)
}

async fn list_profiles(call: Call) -> Response {
    call.done(profiles())
}

async fn create(call: Call, Sent(config): Sent<VolumeConfig>) -> Response {
    match call.volume(config) {
        Ok(config) => call.changed(call.engine.create_volume(&call.project, config)).await,
        Err(malformed) => call.malformed(&malformed),
    }
}

async fn adopt(call: Call, Sent(config): Sent<AdoptConfig>) -> Response {
    call.changed(call.engine.adopt_volume(&call.project, config)).await
}

async fn prune(call: Call, Query(query): Query<PruneQuery>) -> Response {
    let project = call.unless(query.all_projects);
    call.changed(Ok(call.engine.prune_volumes(project, query.dry_run))).await
}

async fn inspect(call: Call, Scoped(name): Scoped, Query(query): Query<InspectQuery>) -> Response {
    call.found(call.engine.volume(&name, query).await)
}

async fn attach(
    call: Call,
    Scoped(name): Scoped,
    Sent(mut config): Sent<AttachConfig>,
) -> Response {
    config.container = call.scoped(config.container);
    call.changed(call.engine.attach_volume(&name, config)).await
}

async fn detach(
    call: Call,
    Scoped(name): Scoped,
    Sent(mut config): Sent<DetachConfig>,
) -> Response {
    config.container = call.scoped(config.container);
    call.changed(call.engine.detach_volume(&name, config)).await
}

async fn remove(call: Call, Scoped(name): Scoped, Query(query): Query<RemoveQuery>) -> Response {
    call.changed(call.engine.remove_volume(&name, query.force)).await
}
