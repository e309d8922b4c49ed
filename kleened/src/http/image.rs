//! Images.

use axum::body::Body;
use axum::extract::ws::{Message, WebSocket};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use kleened_api::exec::MessageType;
use kleened_api::image::{ImageConfig, TagQuery};
use kleened_api::volume::PruneQuery;

use super::prefer::Call;
use super::request::{Name, Query};
use super::socket::{self, CloseCode, Upgrade};
use super::transfer::Limit;
use super::verb::Verb;
use super::{Routes, create, transfer};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(Verb::ImageList, list)
        .on(Verb::ImageImport, import)
        .on(Verb::ImagePrune, prune)
        .on(Verb::ImageInspect, inspect)
        .on(Verb::ImageTag, tag)
        .on(Verb::ImageExport, export)
        .on(Verb::ImageRemove, remove)
        .on(Verb::ImageCreate, create)
        .on(Verb::ImageBuild, build)
}

async fn list(call: Call) -> Response {
    call.done(call.engine.images())
}

async fn import(call: Call, Query(config): Query<ImageConfig>, body: Body) -> Response {
    let (reader, pipe) = transfer::body_pipe();
    let begun = call.engine.import_image(config, Box::new(reader));
    pipe.fill(body, Limit::new(call.stopping.clone())).await;
    call.changed(begun).await
}

async fn prune(call: Call, Query(query): Query<PruneQuery>) -> Response {
    call.changed(Ok(call.engine.prune_images(query.all, query.dry_run))).await
}

async fn inspect(call: Call, Name(name): Name) -> Response {
    call.found(call.engine.image(&name))
}

async fn tag(call: Call, Name(name): Name, Query(query): Query<TagQuery>) -> Response {
    call.changed(call.engine.tag_image(&name, &query.nametag)).await
}

async fn export(call: Call, Name(name): Name) -> Response {
    let (writer, reader) = transfer::answer_pipe(Limit::new(call.stopping.clone()));
    let body = match call.engine.export_image(&name, Box::new(writer)) {
        Ok(verb) => reader.body(verb).await,
        Err(error) => Err(error),
    };
    match body {
        Ok(body) => ([(header::CONTENT_TYPE, "application/x-tar")], body).into_response(),
        Err(error) => call.failed(&error),
    }
}

async fn remove(call: Call, Name(name): Name) -> Response {
    call.changed(call.engine.remove_image(&name)).await
}

async fn create(call: Call, upgrade: Upgrade) -> Response {
    upgrade.run(move |socket| create::run(call.engine, socket, call.stopping))
}

/// What Kleene's client is told that wants to build an image.
const NOT_YET: &str = "not supported yet, use 'klee image import'";

async fn build(upgrade: Upgrade) -> Response {
    upgrade.run(refuse_to_build)
}

async fn refuse_to_build(mut client: WebSocket) {
    if socket::first(&mut client).await.is_none() {
        return;
    }
    let _ = client.send(socket::starting()).await;
    let _ = client.send(Message::text(NOT_YET)).await;
    let what = format!("image build failed: {NOT_YET}");
    socket::close(client, CloseCode::Failed, MessageType::Error, &what).await;
}
