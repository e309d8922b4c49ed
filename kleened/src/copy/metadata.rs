//! Owner, mode, extended attributes and times, in the only order that keeps them all: a change of the
//! owner takes set-user-id bits and capabilities away, and everything changes the times.
//!
//! Access control lists are extended attributes here. Flags that are in the way of a change come last of
//! all, when the tree is complete.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use kleened_sys::fs::{self, Attributes, Node};
use rustix::fs::{AtFlags, FileType, Gid, Mode, RawMode, Uid};

use super::directory::{Directory, Pair};
use super::worker::{Place, Worker};
use super::{Error, Flagged};

/// Set-user-id, set-group-id, sticky: never set by the call that makes a file.
const SPECIAL: u32 = 0o7000;

impl Worker<'_> {
    /// What is open in the target gets the attributes of the source; the extended ones from `from`,
    /// where it is given.
    pub(super) fn finish(
        &mut self,
        place: Place<'_>,
        to: BorrowedFd<'_>,
        from: Option<BorrowedFd<'_>>,
        attributes: &Attributes,
    ) -> Result<(), Error> {
        if let Some((uid, gid)) = self.other_owner(place, attributes) {
            rustix::fs::fchown(to, Some(uid), Some(gid)).map_err(|e| place.failed("fchown", e))?;
        }
        // Directories are made for us alone.
        let made_right = self.exact_modes && attributes.kind == FileType::RegularFile;
        if !made_right || attributes.mode & SPECIAL != 0 {
            rustix::fs::fchmod(to, Mode::from_raw_mode(attributes.mode as RawMode))
                .map_err(|e| place.failed("fchmod", e))?;
        }
        if let Some(from) = from {
            self.xattrs(place, Node::Open(from), Node::Open(to), attributes)?;
        }
        rustix::fs::futimens(to, &attributes.times).map_err(|e| place.failed("futimens", e))?;
        self.flags(place, attributes)
    }

    /// The same for what can't be opened; `from` only stands for it.
    pub(super) fn finish_unopened(
        &mut self,
        place: Place<'_>,
        from: BorrowedFd<'_>,
        attributes: &Attributes,
    ) -> Result<(), Error> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        if let Some((uid, gid)) = self.other_owner(place, attributes) {
            rustix::fs::chownat(place.to(), place.name, Some(uid), Some(gid), nofollow)
                .map_err(|e| place.failed("fchownat", e))?;
        }
        let made_right = self.exact_modes && attributes.mode & SPECIAL == 0;
        // Where links have modes, nothing goes by them.
        if !made_right && attributes.kind != FileType::Symlink {
            fs::chmod_at(place.to(), place.name, attributes.mode)
                .map_err(|e| place.failed("fchmodat", e))?;
        }
        self.xattrs(place, Node::Place(from), Node::At(place.to(), place.name), attributes)?;
        rustix::fs::utimensat(place.to(), place.name, &attributes.times, nofollow)
            .map_err(|e| place.failed("utimensat", e))?;
        self.flags(place, attributes)
    }

    /// A directory that no entry will be made in any more.
    pub(super) fn finish_directory(
        &mut self,
        directory: &Arc<Directory>,
        pair: &Pair,
    ) -> Result<(), Error> {
        let place = Place { directory, pair, name: c"." };
        let from = pair.from.as_ref().map(AsFd::as_fd);
        self.finish(place, pair.to.as_fd(), from, &directory.attributes)
    }

    /// Notes the flags, or sets them where they are in nobody's way.
    fn flags(&self, place: Place<'_>, attributes: &Attributes) -> Result<(), Error> {
        let flags = attributes.flags;
        if flags.protect() {
            let (directory, name) = (place.directory.clone(), place.name.to_owned());
            let flagged = Flagged { directory, name, flags };
            self.shared.flagged.lock().unwrap_or_else(PoisonError::into_inner).push(flagged);
            return Ok(());
        }
        // File systems of FreeBSD give new files some by themselves: those that they should have, mostly.
        #[cfg(target_os = "freebsd")]
        {
            let present = fs::attributes_at(place.to(), place.name);
            if present.map_err(|e| place.failed("fstatat", e))?.flags != flags {
                match fs::set_flags(place.to(), place.name, flags) {
                    // One of those that are only remarks, and not kept here, as on NFS.
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => (),
                    set => set.map_err(|e| place.failed("chflagsat", e))?,
                }
            }
        }
        Ok(())
    }

    /// Sets the flags that were noted.
    pub(super) fn add_flags(&mut self) -> Result<(), Error> {
        let mut flagged = self.shared.flagged.lock().unwrap_or_else(PoisonError::into_inner);
        for Flagged { directory, name, flags } in flagged.drain(..) {
            let pair = directory.pair().map_err(|e| directory.failed("openat", e))?;
            let place = Place { directory: &directory, pair: &pair, name: &name };
            #[cfg(target_os = "linux")]
            let set = fs::add_flags(place.to(), &name, flags);
            #[cfg(target_os = "freebsd")]
            let set = fs::set_flags(place.to(), &name, flags);
            set.map_err(|e| place.failed("setting flags", e))?;
        }
        Ok(())
    }

    /// The owner to set, where it is not the one that new files have.
    fn other_owner(&self, place: Place<'_>, attributes: &Attributes) -> Option<(Uid, Gid)> {
        // The root was made by somebody else.
        let is_root = place.directory.is_root() && place.name == c".";
        (is_root || (attributes.uid, attributes.gid) != self.shared.born)
            .then(|| (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid)))
    }

    fn xattrs(
        &mut self,
        place: Place<'_>,
        from: Node<'_>,
        to: Node<'_>,
        attributes: &Attributes,
    ) -> Result<(), Error> {
        if self.shared.no_xattrs.load(Ordering::Relaxed) {
            return Ok(());
        }
        match fs::list_xattrs(from, &mut self.names) {
            Ok(()) => (),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                if attributes.id.0 == self.shared.device {
                    self.shared.no_xattrs.store(true, Ordering::Relaxed);
                }
                return Ok(());
            }
            Err(error) => return Err(place.failed("listxattr", error)),
        }
        for name in self.names.split_inclusive(|&byte| byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            let with_name = |call: &str| format!("{call} {}", name.to_string_lossy());
            match fs::get_xattr(from, name, &mut self.value) {
                Ok(()) => (),
                // Removed since the list was made.
                Err(error) if is_no_attribute(&error) => continue,
                Err(error) => return Err(place.failed(with_name("getxattr"), error)),
            }
            fs::set_xattr(to, name, &self.value)
                .map_err(|e| place.failed(with_name("setxattr"), e))?;
        }
        Ok(())
    }
}

fn is_no_attribute(error: &io::Error) -> bool {
    #[cfg(target_os = "linux")]
    let none = rustix::io::Errno::NODATA;
    #[cfg(target_os = "freebsd")]
    let none = rustix::io::Errno::NOATTR;
    error.raw_os_error() == Some(none.raw_os_error())
}
