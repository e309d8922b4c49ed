//! Safe, blocking functions over the kernels' calls.
//!
//! `unsafe` lives here and in `libzfs-sys`, and nowhere else. Nothing here knows what a volume or a
//! container is.

pub mod fs;
#[cfg(target_os = "linux")]
pub mod mount;
#[cfg(target_os = "linux")]
pub mod network;
pub mod process;
#[cfg(target_os = "linux")]
pub mod seccomp;
pub mod socket;
pub mod zfs;
