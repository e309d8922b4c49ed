//! End to end: the real binaries over the real socket, with real mounts and processes.

#![cfg(target_os = "linux")]

mod containers;
mod crash;
mod hostile;
mod volumes;
