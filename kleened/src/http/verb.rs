//! The verbs: where each is asked for, who may ask, and with which statuses it is answered.

use axum::http::{Method, StatusCode};
use kleened_api::routes;

/// What a caller needs to be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// Look.
    Read,
    /// Make, change, remove, start, stop.
    Change,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// The method.
    pub(super) method: Method,
    /// The path, with `{name}` for a name.
    pub(super) route: &'static str,
    /// What a caller must be allowed to do.
    pub(super) right: Right,
    /// The status of success.
    pub(super) done: StatusCode,
    /// The statuses of failure that Kleene's client can digest; `None` where it does not know the
    /// verb.
    pub(super) kleene: Option<Kleene>,
}

/// Statuses of failure. With any other than those that it knows for a verb, Kleene's client dies
/// with a traceback; it shows the message with 404 and 409, and of a new container also with 500.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kleene {
    /// There is no such object.
    pub(super) missing: u16,
    /// The caller could change something about it.
    pub(super) refused: u16,
    /// The daemon failed.
    pub(super) failed: u16,
}

macro_rules! verbs {
    ($($verb:ident $method:ident $route:expr, $right:ident, $done:literal, $kleene:expr;)*) => {
        /// A verb.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(super) enum Verb {
            $($verb,)*
        }

        impl Verb {
            /// Every verb.
            #[cfg(test)]
            pub(super) const ALL: &[Self] = &[$(Self::$verb),*];

            /// Its row of the table.
            pub(super) fn row(self) -> Row {
                let (method, route, right, done, kleene) = match self {
                    $(Self::$verb => (Method::$method, $route, Right::$right, $done, $kleene),)*
                };
                let done = StatusCode::from_u16(done).unwrap_or_default();
                Row { method, route, right, done, kleene }
            }
        }
    };
}

const fn kleene(missing: u16, refused: u16, failed: u16) -> Option<Kleene> {
    Some(Kleene { missing, refused, failed })
}

verbs! {
    // verb            method  path                      right   done  Kleene: missing, refused, failed
    Info              GET    routes::INFO,               Read,   200, None;
    VolumeList        GET    routes::VOLUME_LIST,        Read,   200, kleene(500, 500, 500);
    VolumeNames       GET    routes::VOLUME_NAMES,       Read,   200, None;
    VolumeProfiles    GET    routes::VOLUME_PROFILES,    Read,   200, None;
    VolumeCreate      POST   routes::VOLUME_CREATE,      Change, 201, kleene(500, 500, 500);
    VolumeAdopt       POST   routes::VOLUME_ADOPT,       Change, 201, None;
    VolumePrune       POST   routes::VOLUME_PRUNE,       Change, 200, kleene(500, 500, 500);
    VolumeInspect     GET    routes::VOLUME_INSPECT,     Read,   200, kleene(404, 404, 500);
    VolumeAttach      POST   routes::VOLUME_ATTACH,      Change, 200, None;
    VolumeDetach      POST   routes::VOLUME_DETACH,      Change, 200, None;
    VolumeRemove      DELETE routes::VOLUME,             Change, 200, kleene(404, 404, 500);
    SnapshotList      GET    routes::SNAPSHOT_LIST,      Read,   200, None;
    SnapshotCreate    POST   routes::SNAPSHOT_CREATE,    Change, 201, None;
    SnapshotInspect   GET    routes::SNAPSHOT_INSPECT,   Read,   200, None;
    SnapshotRename    POST   routes::SNAPSHOT_RENAME,    Change, 200, None;
    SnapshotProtect   POST   routes::SNAPSHOT_PROTECT,   Change, 200, None;
    SnapshotRestore   POST   routes::SNAPSHOT_RESTORE,   Change, 201, None;
    SnapshotRemove    DELETE routes::SNAPSHOT,           Change, 200, None;
    ContainerList     GET    routes::CONTAINER_LIST,     Read,   200, kleene(500, 500, 500);
    ContainerCreate   POST   routes::CONTAINER_CREATE,   Change, 201, kleene(404, 404, 500);
    ContainerPrune    POST   routes::CONTAINER_PRUNE,    Change, 200, kleene(500, 500, 500);
    ContainerInspect  GET    routes::CONTAINER_INSPECT,  Read,   200, kleene(404, 404, 500);
    ContainerStop     POST   routes::CONTAINER_STOP,     Change, 200, kleene(404, 404, 500);
    ContainerUpdate   POST   routes::CONTAINER_UPDATE,   Change, 201, kleene(404, 409, 500);
    ContainerWait     GET    routes::CONTAINER_WAIT,     Read,   200, None;
    ContainerLogs     GET    routes::CONTAINER_LOGS,     Read,   200, None;
    ContainerSave     POST   routes::CONTAINER_SAVE,     Change, 200, None;
    ContainerRemove   DELETE routes::CONTAINER,          Change, 200, kleene(404, 409, 500);
    ExecCreate        POST   routes::EXEC_CREATE,        Change, 201, kleene(404, 404, 500);
    ExecStart         GET    routes::EXEC_START,         Change, 101, None;
    ExecStop          POST   routes::EXEC_STOP,          Change, 200, kleene(404, 404, 500);
    ImageList         GET    routes::IMAGE_LIST,         Read,   200, kleene(500, 500, 500);
    ImageImport       POST   routes::IMAGE_IMPORT,       Change, 201, None;
    ImagePrune        POST   routes::IMAGE_PRUNE,        Change, 200, kleene(500, 500, 500);
    ImageInspect      GET    routes::IMAGE_INSPECT,      Read,   200, kleene(404, 404, 500);
    ImageTag          POST   routes::IMAGE_TAG,          Change, 200, kleene(404, 404, 500);
    ImageExport       GET    routes::IMAGE_EXPORT,       Read,   200, None;
    ImageRemove       DELETE routes::IMAGE,              Change, 200, kleene(404, 404, 500);
    ImageCreate       GET    routes::IMAGE_CREATE,       Change, 101, None;
    ImageBuild        GET    "/images/build",            Change, 101, None;
    NetworkList       GET    "/networks/list",           Read,   200, kleene(500, 500, 500);
    NetworkCreate     POST   "/networks/create",         Change, 201, kleene(409, 409, 500);
    NetworkPrune      POST   "/networks/prune",          Change, 200, kleene(500, 500, 500);
    NetworkConnect    POST   "/networks/connect",        Change, 204, kleene(404, 409, 500);
    NetworkInspect    GET    "/networks/{name}/inspect", Read,   200, kleene(404, 404, 500);
    NetworkRemove     DELETE "/networks/{name}",         Change, 200, kleene(404, 404, 500);
    NetworkDisconnect POST   "/networks/{name}/disconnect/{container}", Change, 204, kleene(404, 404, 500);
    Operation         GET    routes::OPERATION,          Read,   200, None;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_got_changes_nothing_but_where_it_becomes_a_websocket() {
        for verb in Verb::ALL {
            let row = verb.row();
            let reads = row.method == Method::GET && row.done != StatusCode::SWITCHING_PROTOCOLS;
            assert_eq!(row.right == Right::Read, reads, "{verb:?}");
        }
    }
}
