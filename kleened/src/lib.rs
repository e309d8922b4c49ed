//! The daemon of a volume manager for FreeBSD jails on ZFS.
//!
//! Data flows one way. A request is parsed in [`http`], becomes a verb of the [`engine`], which
//! holds the rules, the locks and the journal, and reaches the kernel through [`storage`] (where
//! the bytes are) and [`platform`] (where processes and mounts are). What must come back comes back
//! as a return value or as state; nothing below calls anything above, and a test refuses an import
//! that points up.
//!
//! ```text
//!   klee ──HTTP──▶ http ──▶ engine ──▶ storage ──▶ zfs, dir ──▶ copy, archive ──▶ kleened-sys ──▶ kernel
//!                             │
//!                             └──────▶ platform ──▶ freebsd, linux ──▶ supervisor ──▶ kleened-sys
//! ```
//!
//! | room | what is in it |
//! | --- | --- |
//! | [`daemon`] | its life: lock, open, serve, stop |
//! | [`init`] | before its life: a root on ZFS, and a configuration that names it |
//! | [`config`] | the configuration file, every key with its default |
//! | [`http`] | one file per resource: parse, call the verb, reply |
//! | [`engine`] | the rules: what may be done, in which order, undone how |
//! | [`storage`] | the contract of a storage driver, and the drivers |
//! | [`platform`] | the contract of a platform, and the platforms |
//! | [`copy`], [`archive`] | a tree to a tree, a tree to tar and back |
//! | `ident` | new ids and random names |
//! | [`fetch`] | archives from servers, and their sums |
//! | [`error`] | what a verb can fail with |

pub mod archive;
pub mod config;
pub mod copy;
pub mod daemon;
pub mod engine;
pub mod error;
pub mod fetch;
pub mod http;
mod ident;
pub mod init;
pub mod platform;
pub mod storage;

pub use error::Error;
