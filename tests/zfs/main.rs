//! `kleened_sys::zfs` on a real pool, which `KLEENE_POOL` names, and its lists on libnvpair alone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod datasets;
mod errors;
mod fixture;
mod leaks;
mod lists;
mod mounts;
mod pools;
mod properties;
mod streams;
