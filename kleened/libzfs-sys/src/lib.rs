//! Raw declarations of what is used of libnvpair, libzfs_core and libzfs.
//!
//! The libraries are loaded at run time: one binary builds everywhere, runs where there is no ZFS, and
//! says so. No header is needed: FreeBSD doesn't install any. The signatures are those of OpenZFS 2.1
//! to 2.4, which differ in `const` alone; what only some versions have is an `Option`. Every function
//! is declared as the headers `libnvpair.h`, `sys/nvpair.h`, `libzfs_core.h` and `libzfs.h` have it,
//! and documented there and in `libzfs_core.c`.
//!
//! Nothing here is safe; `kleened-sys` makes it so.

#![allow(missing_docs, reason = "the names are those of the headers, which say what they do")]

mod load;

pub use load::LoadError;

use std::ffi::{c_char, c_int, c_uchar, c_uint, c_void};

use load::library;

/// `nvlist_t`. Opaque: only libnvpair looks inside.
#[repr(C)]
#[derive(Debug)]
pub struct nvlist {
    opaque: [u8; 0],
}

/// `nvpair_t`.
#[repr(C)]
#[derive(Debug)]
pub struct nvpair {
    opaque: [u8; 0],
}

/// `libzfs_handle_t`.
#[repr(C)]
#[derive(Debug)]
pub struct libzfs_handle {
    opaque: [u8; 0],
}

/// `zfs_handle_t`.
#[repr(C)]
#[derive(Debug)]
pub struct zfs_handle {
    opaque: [u8; 0],
}

/// `zpool_handle_t`.
#[repr(C)]
#[derive(Debug)]
pub struct zpool_handle {
    opaque: [u8; 0],
}

/// `dmu_replay_record_t`, of which every stream is made; the first of a stream begins it.
pub type ReplayRecord = [u64; 39];

/// `boolean_t`: an enumeration.
pub type Boolean = c_int;

/// `zfs_iter_f`. It owns the handle.
pub type IterFn = unsafe extern "C" fn(*mut zfs_handle, *mut c_void) -> c_int;

/// `NV_UNIQUE_NAME`: an added pair replaces one of the same name.
pub const NV_UNIQUE_NAME: c_uint = 1;
/// `NV_ENCODE_XDR`: the encoding of streams.
pub const NV_ENCODE_XDR: c_int = 1;

/// `data_type_t`.
pub mod data_type {
    use std::ffi::c_int;

    pub const BOOLEAN: c_int = 1;
    pub const BYTE: c_int = 2;
    pub const INT16: c_int = 3;
    pub const UINT16: c_int = 4;
    pub const INT32: c_int = 5;
    pub const UINT32: c_int = 6;
    pub const INT64: c_int = 7;
    pub const UINT64: c_int = 8;
    pub const STRING: c_int = 9;
    pub const BYTE_ARRAY: c_int = 10;
    pub const UINT64_ARRAY: c_int = 16;
    pub const STRING_ARRAY: c_int = 17;
    pub const NVLIST: c_int = 19;
    pub const NVLIST_ARRAY: c_int = 20;
    pub const BOOLEAN_VALUE: c_int = 21;
    pub const INT8: c_int = 22;
    pub const UINT8: c_int = 23;
    pub const UINT8_ARRAY: c_int = 26;
}

/// `LZC_DATSET_TYPE_ZFS`: a file system.
pub const LZC_DATASET_TYPE_ZFS: c_int = 2;

/// `enum lzc_send_flags`.
pub mod send_flag {
    use std::ffi::c_int;

    pub const EMBED_DATA: c_int = 1 << 0;
    pub const LARGE_BLOCK: c_int = 1 << 1;
    pub const COMPRESS: c_int = 1 << 2;
    pub const RAW: c_int = 1 << 3;
    pub const SAVED: c_int = 1 << 4;
}

/// `zfs_type_t`.
pub mod zfs_type {
    use std::ffi::c_int;

    pub const FILESYSTEM: c_int = 1 << 0;
    pub const SNAPSHOT: c_int = 1 << 1;
    pub const VOLUME: c_int = 1 << 2;
}

/// `ZFS_ITER_SIMPLE`: names, without reading each dataset.
pub const ZFS_ITER_SIMPLE: c_int = 1 << 6;

/// `diff_flags_t`.
pub mod diff_flag {
    use std::ffi::c_int;

    pub const PARSEABLE: c_int = 1 << 0;
    pub const CLASSIFY: c_int = 1 << 2;
}

/// `ZEVENT_NONBLOCK`.
pub const ZEVENT_NONBLOCK: c_uint = 1;
/// `ZEVENT_SEEK_END`: the events that come.
pub const ZEVENT_SEEK_END: u64 = u64::MAX;

/// `zfs_error_t`: those whose numbers are the same in all versions.
pub mod zfs_error {
    use std::ffi::c_int;

    pub const NOMEM: c_int = 2000;
    pub const BADPROP: c_int = 2001;
    pub const PROPREADONLY: c_int = 2002;
    pub const PROPTYPE: c_int = 2003;
    pub const PROPNONINHERIT: c_int = 2004;
    pub const PROPSPACE: c_int = 2005;
    pub const BADTYPE: c_int = 2006;
    pub const BUSY: c_int = 2007;
    pub const EXISTS: c_int = 2008;
    pub const NOENT: c_int = 2009;
    pub const BADSTREAM: c_int = 2010;
    pub const DSREADONLY: c_int = 2011;
    pub const INVALIDNAME: c_int = 2013;
    pub const BADVERSION: c_int = 2021;
    pub const POOLUNAVAIL: c_int = 2022;
    pub const BADPATH: c_int = 2024;
    pub const CROSSTARGET: c_int = 2025;
    pub const ZONED: c_int = 2026;
    pub const UMOUNTFAILED: c_int = 2028;
    pub const PERM: c_int = 2031;
    pub const NOSPC: c_int = 2032;
    pub const INTR: c_int = 2035;
    pub const NAMETOOLONG: c_int = 2043;
    pub const NOTSUP: c_int = 2056;
}

/// `ZPROP_INVAL`: no such property.
pub const ZPROP_INVAL: c_int = -1;

/// The device through which everything goes.
pub const ZFS_DEV: &str = "/dev/zfs";

library! {
    /// libnvpair: lists of named, typed values.
    Nvpair of "libnvpair";
    linux: ["libnvpair.so.3"],
    freebsd: ["libnvpair.so.2"];

    fn nvlist_alloc(*mut *mut nvlist, c_uint, c_int) -> c_int;
    fn nvlist_free(*mut nvlist);
    fn nvlist_dup(*const nvlist, *mut *mut nvlist, c_int) -> c_int;
    fn nvlist_pack(*mut nvlist, *mut *mut c_char, *mut usize, c_int, c_int) -> c_int;
    fn nvlist_unpack(*mut c_char, usize, *mut *mut nvlist, c_int) -> c_int;
    fn nvlist_add_boolean(*mut nvlist, *const c_char) -> c_int;
    fn nvlist_add_boolean_value(*mut nvlist, *const c_char, Boolean) -> c_int;
    fn nvlist_add_int64(*mut nvlist, *const c_char, i64) -> c_int;
    fn nvlist_add_uint64(*mut nvlist, *const c_char, u64) -> c_int;
    fn nvlist_add_string(*mut nvlist, *const c_char, *const c_char) -> c_int;
    fn nvlist_add_nvlist(*mut nvlist, *const c_char, *const nvlist) -> c_int;
    fn nvlist_add_uint64_array(*mut nvlist, *const c_char, *const u64, c_uint) -> c_int;
    fn nvlist_add_string_array(*mut nvlist, *const c_char, *const *const c_char, c_uint) -> c_int;
    fn nvlist_add_nvlist_array(*mut nvlist, *const c_char, *const *const nvlist, c_uint) -> c_int;
    fn nvlist_remove_all(*mut nvlist, *const c_char) -> c_int;
    fn nvlist_lookup_nvpair(*mut nvlist, *const c_char, *mut *mut nvpair) -> c_int;
    fn nvlist_next_nvpair(*mut nvlist, *const nvpair) -> *mut nvpair;
    fn nvpair_name(*const nvpair) -> *const c_char;
    fn nvpair_type(*const nvpair) -> c_int;
    fn nvpair_value_boolean_value(*const nvpair, *mut Boolean) -> c_int;
    fn nvpair_value_byte(*const nvpair, *mut c_uchar) -> c_int;
    fn nvpair_value_int8(*const nvpair, *mut i8) -> c_int;
    fn nvpair_value_uint8(*const nvpair, *mut u8) -> c_int;
    fn nvpair_value_int16(*const nvpair, *mut i16) -> c_int;
    fn nvpair_value_uint16(*const nvpair, *mut u16) -> c_int;
    fn nvpair_value_int32(*const nvpair, *mut i32) -> c_int;
    fn nvpair_value_uint32(*const nvpair, *mut u32) -> c_int;
    fn nvpair_value_int64(*const nvpair, *mut i64) -> c_int;
    fn nvpair_value_uint64(*const nvpair, *mut u64) -> c_int;
    fn nvpair_value_string(*const nvpair, *mut *const c_char) -> c_int;
    fn nvpair_value_nvlist(*mut nvpair, *mut *mut nvlist) -> c_int;
    fn nvpair_value_byte_array(*mut nvpair, *mut *mut c_uchar, *mut c_uint) -> c_int;
    fn nvpair_value_uint8_array(*mut nvpair, *mut *mut u8, *mut c_uint) -> c_int;
    fn nvpair_value_uint64_array(*mut nvpair, *mut *mut u64, *mut c_uint) -> c_int;
    fn nvpair_value_string_array(*mut nvpair, *mut *mut *const c_char, *mut c_uint) -> c_int;
    fn nvpair_value_nvlist_array(*mut nvpair, *mut *mut *mut nvlist, *mut c_uint) -> c_int;
}

library! {
    /// libzfs_core: the kernel's calls. Thread safe, and each atomic. They return an error number.
    Core of "libzfs_core";
    linux: ["libzfs_core.so.3"],
    freebsd: ["libzfs_core.so.2"];

    fn libzfs_core_init() -> c_int;
    fn lzc_create(*const c_char, c_int, *mut nvlist, *mut u8, c_uint) -> c_int;
    fn lzc_clone(*const c_char, *const c_char, *mut nvlist) -> c_int;
    fn lzc_promote(*const c_char, *mut c_char, c_int) -> c_int;
    fn lzc_rename(*const c_char, *const c_char) -> c_int;
    fn lzc_destroy(*const c_char) -> c_int;
    fn lzc_snapshot(*mut nvlist, *mut nvlist, *mut *mut nvlist) -> c_int;
    fn lzc_destroy_snaps(*mut nvlist, Boolean, *mut *mut nvlist) -> c_int;
    fn lzc_rollback_to(*const c_char, *const c_char) -> c_int;
    fn lzc_hold(*mut nvlist, c_int, *mut *mut nvlist) -> c_int;
    fn lzc_release(*mut nvlist, *mut *mut nvlist) -> c_int;
    fn lzc_get_holds(*const c_char, *mut *mut nvlist) -> c_int;
    fn lzc_bookmark(*mut nvlist, *mut *mut nvlist) -> c_int;
    fn lzc_get_bookmarks(*const c_char, *mut nvlist, *mut *mut nvlist) -> c_int;
    fn lzc_destroy_bookmarks(*mut nvlist, *mut *mut nvlist) -> c_int;
    fn lzc_send_resume(*const c_char, *const c_char, c_int, c_int, u64, u64) -> c_int;
    fn lzc_send_space(*const c_char, *const c_char, c_int, *mut u64) -> c_int;
    fn lzc_receive_with_cmdprops(
        *const c_char, *mut nvlist, *mut nvlist, *mut u8, c_uint, *const c_char, Boolean, Boolean,
        Boolean, c_int, *const ReplayRecord, c_int, *mut u64, *mut u64, *mut u64, *mut *mut nvlist
    ) -> c_int;
    fn lzc_channel_program(
        *const c_char, *const c_char, u64, u64, *mut nvlist, *mut *mut nvlist
    ) -> c_int;
    fn lzc_channel_program_nosync(
        *const c_char, *const c_char, u64, u64, *mut nvlist, *mut *mut nvlist
    ) -> c_int;
    fn lzc_sync(*const c_char, *mut nvlist, *mut *mut nvlist) -> c_int;
}

library! {
    /// libzfs: what libzfs_core lacks. A handle must not be used by two threads at once.
    Libzfs of "libzfs";
    // OpenZFS 2.4, 2.3, 2.2 and 2.1.
    linux: ["libzfs.so.7", "libzfs.so.6", "libzfs.so.4"],
    freebsd: ["libzfs.so.4"];

    fn libzfs_init() -> *mut libzfs_handle;
    fn libzfs_fini(*mut libzfs_handle);
    fn libzfs_print_on_error(*mut libzfs_handle, Boolean);
    fn libzfs_errno(*mut libzfs_handle) -> c_int;
    fn libzfs_error_action(*mut libzfs_handle) -> *const c_char;
    fn libzfs_error_description(*mut libzfs_handle) -> *const c_char;
    fn zfs_open(*mut libzfs_handle, *const c_char, c_int) -> *mut zfs_handle;
    fn zfs_close(*mut zfs_handle);
    fn zfs_get_name(*const zfs_handle) -> *const c_char;
    fn zfs_get_type(*const zfs_handle) -> c_int;
    fn zfs_iter_filesystems(*mut zfs_handle, IterFn, *mut c_void) -> c_int;
    fn zfs_iter_snapshots(*mut zfs_handle, Boolean, IterFn, *mut c_void, u64, u64) -> c_int;
    fn zfs_get_all_props(*mut zfs_handle) -> *mut nvlist;
    fn zfs_prop_set_list(*mut zfs_handle, *mut nvlist) -> c_int;
    fn zfs_prop_inherit(*mut zfs_handle, *const c_char, Boolean) -> c_int;
    fn zfs_valid_proplist(
        *mut libzfs_handle, c_int, *mut nvlist, u64, *mut zfs_handle, *mut zpool_handle, Boolean,
        *const c_char
    ) -> *mut nvlist;
    fn zfs_name_to_prop(*const c_char) -> c_int;
    fn zfs_prop_index_to_string(c_int, u64, *mut *const c_char) -> c_int;
    fn zfs_show_diffs(*mut zfs_handle, c_int, *const c_char, *const c_char, c_int) -> c_int;
    fn zfs_send_resume_token_to_nvlist(*mut libzfs_handle, *const c_char) -> *mut nvlist;
    fn zpool_open_canfail(*mut libzfs_handle, *const c_char) -> *mut zpool_handle;
    fn zpool_close(*mut zpool_handle);
    fn zpool_free_handles(*mut libzfs_handle);
    fn zpool_create(
        *mut libzfs_handle, *const c_char, *mut nvlist, *mut nvlist, *mut nvlist
    ) -> c_int;
    fn zpool_destroy(*mut zpool_handle, *const c_char) -> c_int;
    fn zpool_events_next(
        *mut libzfs_handle, *mut *mut nvlist, *mut c_int, c_uint, c_int
    ) -> c_int;
    fn zpool_events_seek(*mut libzfs_handle, u64, c_int) -> c_int;

    // In the libraries of all versions, and in no header that is installed.
    optional fn zfeature_lookup_name(*const c_char, *mut c_int) -> c_int;
    // FreeBSD.
    optional fn zfs_jail(*mut zfs_handle, c_int, c_int) -> c_int;
    // OpenZFS 2.2.
    optional fn zfs_iter_filesystems_v2(*mut zfs_handle, c_int, IterFn, *mut c_void) -> c_int;
}
