//! Volumes.

use axum::response::Response;
use kleened_api::attach::{AttachConfig, DetachConfig};
use kleened_api::volume::{
    AdoptConfig, InspectQuery, PruneQuery, RemoveQuery, VolumeConfig, VolumeFilter,
};

use super::Routes;
use super::prefer::Call;
use super::request::{Name, Query, Sent};
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
    call.found(call.engine.volumes(filter).await)
}

async fn names(call: Call, Query(filter): Query<VolumeFilter>) -> Response {
    call.found(call.engine.volume_names(&filter).await)
}

async fn list_profiles(call: Call) -> Response {
    call.done(profiles())
}

async fn create(call: Call, Sent(config): Sent<VolumeConfig>) -> Response {
    match call.volume(config) {
        Ok(config) => call.changed(call.engine.create_volume(config)).await,
        Err(malformed) => call.malformed(&malformed),
    }
}

async fn adopt(call: Call, Sent(config): Sent<AdoptConfig>) -> Response {
    call.changed(call.engine.adopt_volume(config)).await
}

async fn prune(call: Call, Query(query): Query<PruneQuery>) -> Response {
    call.changed(Ok(call.engine.prune_volumes(query.dry_run))).await
}

async fn inspect(call: Call, Name(name): Name, Query(query): Query<InspectQuery>) -> Response {
    call.found(call.engine.volume(&name, query).await)
}

async fn attach(call: Call, Name(name): Name, Sent(config): Sent<AttachConfig>) -> Response {
    call.changed(call.engine.attach_volume(&name, config)).await
}

async fn detach(call: Call, Name(name): Name, Sent(config): Sent<DetachConfig>) -> Response {
    call.changed(call.engine.detach_volume(&name, config)).await
}

async fn remove(call: Call, Name(name): Name, Query(query): Query<RemoveQuery>) -> Response {
    call.changed(call.engine.remove_volume(&name, query.force)).await
}
