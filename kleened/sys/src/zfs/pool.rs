//! Pools: to make one on a file, and to see whether there is one.

use std::ffi::{CString, c_int};
use std::path::Path;

use super::Zfs;
use super::error::{Error, Kind, c_name};
use super::nvlist::NvList;

/// What a new pool gets of what OpenZFS can: everything that libzfs knows of this. It enables what
/// these need. What changes how others read the pool in a way that is seldom wanted is left out.
const FEATURES: &[&str] = &[
    "allocation_classes",
    "async_destroy",
    "blake3",
    "block_cloning",
    "bookmark_v2",
    "bookmark_written",
    "bookmarks",
    "device_rebuild",
    "device_removal",
    "embedded_data",
    "empty_bpobj",
    "enabled_txg",
    "encryption",
    "extensible_dataset",
    "filesystem_limits",
    "head_errlog",
    "hole_birth",
    "large_blocks",
    "large_dnode",
    "livelist",
    "log_spacemap",
    "lz4_compress",
    "obsolete_counts",
    "project_quota",
    "redacted_datasets",
    "redaction_bookmarks",
    "resilver_defer",
    "sha512",
    "skein",
    "spacemap_histogram",
    "spacemap_v2",
    "userobj_accounting",
    "vdev_zaps_v2",
    "zilsaxattr",
    "zpool_checkpoint",
    "zstd_compress",
];

impl Zfs {
    /// Whether there is an imported pool of that name.
    ///
    /// # Errors
    ///
    /// `Invalid` for what is no name of a pool; it can't be found out.
    pub fn pool_exists(&'static self, name: &str) -> Result<bool, Error> {
        match self.properties(name, &["type"]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// There is a pool with that file as its only device, with all features that are good for a new
    /// one, and with these properties of its root dataset, as `zpool create -O` takes them. Nothing of
    /// it is mounted.
    ///
    /// # Errors
    ///
    /// `Exists`; `Invalid`, with what is wrong with the name, the file or a property; what the kernel
    /// says. Then there is no such pool.
    pub fn create_pool_on_file(
        &'static self,
        name: &str,
        file: &Path,
        root_properties: &[(&str, &str)],
    ) -> Result<(), Error> {
        const VERB: &str = "create pool";
        let c = c_name(VERB, name)?;
        let path = file.to_str().filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| {
            Error::new(VERB, name, libc::EINVAL)
                .detail(format!("the path {} is not absolute, or no text", file.display()))
        })?;
        let mut device = NvList::new()?;
        device.put_text("type", "file")?;
        device.put_text("path", path)?;
        device.put_number("is_log", 0)?;
        let mut tree = NvList::new()?;
        tree.put_text("type", "root")?;
        tree.put_lists("children", &[device])?;
        let mut properties = NvList::new()?;
        for feature in FEATURES.iter().filter(|feature| self.knows_feature(feature)) {
            properties.put_text(&format!("feature@{feature}"), "enabled")?;
        }
        let mut root = NvList::new()?;
        for (name, value) in root_properties {
            root.put_text(name, value)?;
        }
        let handle = self.handle(VERB)?;
        let create = handle.library().zpool_create;
        let (of_pool, of_root) = (properties.as_ptr(), root.as_ptr());
        // SAFETY: the handle is valid and this thread's, the name a C string; the lists are valid and
        // only read.
        let result =
            unsafe { create(handle.as_ptr(), c.as_ptr(), tree.as_ptr(), of_pool, of_root) };
        if result == 0 { Ok(()) } else { Err(handle.error(VERB, name)) }
    }

    /// Whether libzfs knows the feature of pools; false where it can't be asked.
    fn knows_feature(&self, feature: &str) -> bool {
        let (Some(look_up), Ok(c)) = (self.libzfs.zfeature_lookup_name, CString::new(feature))
        else {
            return false;
        };
        let mut number: c_int = 0;
        // SAFETY: the name is a C string, and there is room for a number.
        unsafe { look_up(c.as_ptr(), &raw mut number) == 0 }
    }
}
