//! Who may do what.

use rustix::process::geteuid;
use tokio::net::UnixStream;

use super::verb::Right;
use crate::error::{Error, Result};

/// Who is at the other end of a connection, by the kernel's word at the time it was made; `None`
/// where the kernel would not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer(pub(super) Option<u32>);

impl Peer {
    /// The one at the other end of that connection.
    pub(super) fn of(stream: &UnixStream) -> Self {
        Self(stream.peer_cred().ok().map(|credentials| credentials.uid()))
    }
}

/// The users with rights of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    own: u32,
    read_only: Vec<u32>,
}

impl Access {
    /// With these users, who may only look.
    #[must_use]
    pub fn new(read_only: Vec<u32>) -> Self {
        Self { own: geteuid().as_raw(), read_only }
    }

    /// Who may do what: root and the daemon's own user everything; the read-only users look; anyone
    /// else whom the mode and group of the socket let in, everything.
    ///
    /// # Errors
    ///
    /// [`Error::Denied`].
    pub(super) fn check(&self, Peer(uid): Peer, right: Right) -> Result<()> {
        match uid {
            None => Err(Error::Denied("the caller's credentials can't be read".into())),
            Some(uid) if uid == 0 || uid == self.own => Ok(()),
            Some(uid) if right == Right::Change && self.read_only.contains(&uid) => {
                Err(Error::Denied(format!(
                    "user {uid} may look and change nothing, as 'read_only_users' in the daemon's \
                     configuration says"
                )))
            }
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_only_users_look() {
        let own = geteuid().as_raw();
        let access = Access::new(vec![0, own, 4711]);
        for (uid, read, change) in [
            (Some(0), true, true),
            (Some(own), true, true),
            (Some(4711), true, false),
            (Some(4712), true, true),
            (None, false, false),
        ] {
            assert_eq!(access.check(Peer(uid), Right::Read).is_ok(), read, "{uid:?}");
            assert_eq!(access.check(Peer(uid), Right::Change).is_ok(), change, "{uid:?}");
        }
    }
}
