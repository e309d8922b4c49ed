//! Paths, the path segment's encoding, and the header by which a client asks for exact answers.

/// The header of [RFC 7240](https://www.rfc-editor.org/rfc/rfc7240).
pub const PREFER: &str = "prefer";

/// What `klee` sends in [`PREFER`]: the status that fits, where Kleene's client could digest only a
/// poorer one, and an operation to wait for where the change takes long.
pub const PREFER_EXACT: &str = "exact-status, respond-async";

/// The header that names the project of what a request names without one, and of what it lists. The
/// default project is meant where it is missing.
pub const PROJECT: &str = "kleened-project";

/// The default socket.
pub const DEFAULT_SOCKET: &str = "/var/run/kleened.sock";

macro_rules! routes {
    ($($(#[$doc:meta])* $name:ident = $path:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $path;)*
    };
}

routes! {
    /// GET: [`System`](crate::system::System).
    INFO = "/info";
    /// GET [`VolumeFilter`](crate::volume::VolumeFilter): the volumes, newest first.
    VOLUME_LIST = "/volumes/list";
    /// GET [`VolumeFilter`](crate::volume::VolumeFilter): their names, in order. Answered at once after
    /// a start, when the rest is still being read, but where labels are asked for.
    VOLUME_NAMES = "/volumes/names";
    /// GET: the [`Profile`](crate::volume::Profile)s that a new volume can have.
    VOLUME_PROFILES = "/volumes/profiles";
    /// POST [`VolumeConfig`](crate::volume::VolumeConfig): 201 with the name.
    VOLUME_CREATE = "/volumes/create";
    /// POST [`AdoptConfig`](crate::volume::AdoptConfig): 201 with the name.
    VOLUME_ADOPT = "/volumes/adopt";
    /// POST: the names of the removed volumes.
    VOLUME_PRUNE = "/volumes/prune";
    /// GET [`InspectQuery`](crate::volume::InspectQuery): [`VolumeInspect`](crate::volume::VolumeInspect).
    VOLUME_INSPECT = "/volumes/{name}/inspect";
    /// POST [`AttachConfig`](crate::attach::AttachConfig): the name.
    VOLUME_ATTACH = "/volumes/{name}/attach";
    /// POST [`DetachConfig`](crate::attach::DetachConfig): the name.
    VOLUME_DETACH = "/volumes/{name}/detach";
    /// DELETE [`RemoveQuery`](crate::volume::RemoveQuery): the name.
    VOLUME = "/volumes/{name}";
    /// GET [`SnapshotFilter`](crate::snapshot::SnapshotFilter): the snapshots of volumes, by volume,
    /// oldest first.
    SNAPSHOT_LIST = "/snapshots/list";
    /// POST [`SnapshotConfig`](crate::snapshot::SnapshotConfig): 201 with the snapshots as `VOLUME@NAME`.
    SNAPSHOT_CREATE = "/snapshots/create";
    /// GET: [`Snapshot`](crate::snapshot::Snapshot). Here and below the name is `VOLUME@NAME`.
    SNAPSHOT_INSPECT = "/snapshots/{name}/inspect";
    /// POST [`SnapshotRename`](crate::snapshot::SnapshotRename): the new name.
    SNAPSHOT_RENAME = "/snapshots/{name}/rename";
    /// POST [`SnapshotProtect`](crate::snapshot::SnapshotProtect): the name.
    SNAPSHOT_PROTECT = "/snapshots/{name}/protect";
    /// POST [`RestoreConfig`](crate::snapshot::RestoreConfig): 201 with the name of the volume.
    SNAPSHOT_RESTORE = "/snapshots/{name}/restore";
    /// DELETE: the name.
    SNAPSHOT = "/snapshots/{name}";
    /// GET [`ListQuery`](crate::container::ListQuery): the containers, newest first.
    CONTAINER_LIST = "/containers/list";
    /// POST [`ContainerConfig`](crate::container::ContainerConfig): 201 with the id.
    CONTAINER_CREATE = "/containers/create";
    /// POST: the ids of the removed containers.
    CONTAINER_PRUNE = "/containers/prune";
    /// GET: [`ContainerInspect`](crate::container::ContainerInspect).
    CONTAINER_INSPECT = "/containers/{name}/inspect";
    /// POST [`StopQuery`](crate::container::StopQuery): the id.
    CONTAINER_STOP = "/containers/{name}/stop";
    /// POST [`ContainerConfig`](crate::container::ContainerConfig): 201 with the id.
    CONTAINER_UPDATE = "/containers/{name}/update";
    /// GET: [`WaitReply`](crate::container::WaitReply), when the container has ended.
    CONTAINER_WAIT = "/containers/{name}/wait";
    /// GET [`LogsQuery`](crate::container::LogsQuery): frames of [`LOG_MEDIA_TYPE`](crate::stream::LOG_MEDIA_TYPE).
    CONTAINER_LOGS = "/containers/{name}/logs";
    /// POST [`ImageConfig`](crate::image::ImageConfig) as query: the id of an image made from the container.
    CONTAINER_SAVE = "/containers/{name}/save";
    /// DELETE: the id.
    CONTAINER = "/containers/{name}";
    /// POST [`ExecConfig`](crate::exec::ExecConfig): 201 with the id.
    EXEC_CREATE = "/exec/create";
    /// GET, websocket: see [`stream`](crate::stream).
    EXEC_START = "/exec/start";
    /// POST [`ExecStopQuery`](crate::exec::ExecStopQuery): the id.
    EXEC_STOP = "/exec/{name}/stop";
    /// GET: the images, newest first.
    IMAGE_LIST = "/images/list";
    /// Websocket: [`ImageCreateConfig`](crate::image::ImageCreateConfig) goes,
    /// [`ImageEvent`](crate::image::ImageEvent) comes. A client that closes it takes the image back.
    IMAGE_CREATE = "/images/create";
    /// POST [`ImageConfig`](crate::image::ImageConfig) as query and a tar archive as body: 201 with the id.
    IMAGE_IMPORT = "/images/import";
    /// POST [`PruneQuery`](crate::volume::PruneQuery): the ids of the removed images.
    IMAGE_PRUNE = "/images/prune";
    /// GET: [`Image`](crate::image::Image).
    IMAGE_INSPECT = "/images/{name}/inspect";
    /// POST [`TagQuery`](crate::image::TagQuery): the id.
    IMAGE_TAG = "/images/{name}/tag";
    /// GET: the image as a tar archive.
    IMAGE_EXPORT = "/images/{name}/export";
    /// DELETE: the reference as it was given.
    IMAGE = "/images/{name}";
    /// GET [`WaitQuery`](crate::operation::WaitQuery): [`Operation`](crate::operation::Operation).
    OPERATION = "/operations/{name}";
}

/// The path for `route` with `{name}` replaced by the percent-encoded `name`, so that no name can
/// lead to another resource.
#[must_use]
pub fn with_name(route: &str, name: &str) -> String {
    // A client library may resolve dot segments, so they are encoded too.
    let dots = matches!(name, "." | "..");
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'_' | b'~' | b':' | b'@')
            || (byte == b'.' && !dots)
        {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    route.replace("{name}", &encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leaves_its_segment() {
        assert_eq!(with_name(VOLUME, "my-vol"), "/volumes/my-vol");
        assert_eq!(with_name(VOLUME, "../containers/x"), "/volumes/..%2Fcontainers%2Fx");
        assert_eq!(with_name(VOLUME, ".."), "/volumes/%2E%2E");
        assert_eq!(with_name(VOLUME, "a?b#c d"), "/volumes/a%3Fb%23c%20d");
        assert_eq!(with_name(VOLUME_INSPECT, "æ"), "/volumes/%C3%A6/inspect");
    }
}
