//! Safe, blocking functions over the kernels' calls.
//!
//! `unsafe` lives here and in `libzfs-sys`, and nowhere else. Nothing here knows what a volume or a
//! container is.

pub mod fs;
