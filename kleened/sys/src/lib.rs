//! Safe, blocking functions over the kernels' calls.
//!
//! `unsafe` lives here and in `libzfs-sys`, and nowhere else. Nothing here knows what a volume or a
//! container is.

pub mod fs;
pub mod jail;
#[cfg(target_os = "freebsd")]
pub mod login;
#[cfg(target_os = "linux")]
pub mod mount;
#[cfg(target_os = "linux")]
pub mod network;
#[cfg(target_os = "freebsd")]
pub mod nmount;
pub mod process;
#[cfg(target_os = "freebsd")]
pub mod rctl;
#[cfg(target_os = "linux")]
pub mod seccomp;
pub mod socket;
#[cfg(target_os = "freebsd")]
pub mod watch;
pub mod zfs;
