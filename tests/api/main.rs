//! The daemon at its socket, byte by byte: what Kleene's client sends and can digest, what an exact
//! client gets, websockets, and the daemon's own life.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(missing_docs, unreachable_pub, reason = "tests")]

mod daemon;
mod exact;
mod kleene;
mod shapes;
mod streams;
mod wire;
