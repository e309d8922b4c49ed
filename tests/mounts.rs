//! File systems of a test's own. On Linux nobody else sees them, and they go with the test's thread.
#![allow(clippy::panic, reason = "a test that can't have what it needs has failed")]

use std::path::Path;
use std::process::Command;

#[cfg(target_os = "freebsd")]
pub use freebsd::{Mounted, private};
#[cfg(target_os = "linux")]
pub use linux::{Mounted, private};

/// Says that a test could not run, and fails it where `KLEENE_REQUIRE` names what it needs.
///
/// # Panics
///
/// Where `thing` is required.
pub fn skip(thing: &str, why: impl std::fmt::Display) {
    let required = std::env::var("KLEENE_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|r| r == thing), "{thing} is required: {why}");
    eprintln!("skipped: no {thing}: {why}");
}

/// A directory is seen at another place, too, until that is unmounted.
///
/// # Panics
///
/// Where it can't be mounted.
pub fn bind(source: &Path, target: &Path) {
    let how: &[&str] = if cfg!(target_os = "linux") { &["--bind"] } else { &["-t", "nullfs"] };
    run(Command::new("mount").args(how).args([source, target]));
}

/// What was mounted there last is no more.
///
/// # Panics
///
/// Where it can't be unmounted.
pub fn unmount(target: &Path) {
    run(Command::new("umount").arg(target));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

fn folder() -> tempfile::TempDir {
    let made = tempfile::tempdir().and_then(|dir| {
        std::fs::create_dir(dir.path().join("mnt"))?;
        Ok(dir)
    });
    made.unwrap_or_else(|error| panic!("temporary directory: {error}"))
}

#[cfg(target_os = "linux")]
mod linux {
    use std::path::PathBuf;
    use std::process::Command;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, unshare};

    use super::{folder, skip};

    /// What this thread, and what it starts, mounts from now on is seen nowhere else. False, having said
    /// so, where that needs more privileges.
    #[must_use]
    pub fn private() -> bool {
        let none = None::<&str>;
        let done = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none));
        match done {
            Ok(()) => true,
            Err(errno) => {
                skip("mount", errno);
                false
            }
        }
    }

    /// A file system that is mounted while this lives.
    #[derive(Debug)]
    pub struct Mounted {
        /// Holds the image and the mount point.
        dir: tempfile::TempDir,
    }

    impl Mounted {
        /// A new tmpfs, which everybody sees where the thread is not [`private`].
        ///
        /// # Panics
        ///
        /// Where it can't be mounted.
        #[must_use]
        pub fn tmpfs(options: &str) -> Self {
            let new = Self::new();
            mount(Some("tmpfs"), &new.path(), Some("tmpfs"), MsFlags::empty(), Some(options))
                .unwrap_or_else(|errno| panic!("tmpfs {options}: {errno}"));
            new
        }

        /// A new file system in a sparse file, made by `mkfs.KIND`; `None`, having said so, where there is
        /// no such program or kernel module. The thread must be [`private`].
        ///
        /// # Panics
        ///
        /// Where the file can't be made.
        #[must_use]
        pub fn image(kind: &str, mib: u64) -> Option<Self> {
            let new = Self::new();
            let image = new.dir.path().join("image");
            std::fs::File::create(&image)
                .and_then(|file| file.set_len(mib << 20))
                .unwrap_or_else(|error| panic!("{}: {error}", image.display()));
            let mut make = Command::new(format!("/usr/sbin/mkfs.{kind}"));
            let mut mount = Command::new("mount");
            // The loop device goes with the mount.
            mount.args(["-t", kind, "-o", "loop"]).arg(&image).arg(new.path());
            for command in [make.arg("-q").arg(&image), &mut mount] {
                let said = match command.output() {
                    Ok(output) if output.status.success() => continue,
                    Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
                    Err(error) => error.to_string(),
                };
                skip(kind, said.trim());
                return None;
            }
            Some(new)
        }

        fn new() -> Self {
            Self { dir: folder() }
        }

        /// Where it is mounted.
        #[must_use]
        pub fn path(&self) -> PathBuf {
            self.dir.path().join("mnt")
        }

        /// It is mounted with these options from now on.
        ///
        /// # Panics
        ///
        /// Where it can't be.
        pub fn change(&self, options: &str) {
            let none = None::<&str>;
            mount(none, &self.path(), none, MsFlags::MS_REMOUNT, Some(options))
                .unwrap_or_else(|errno| panic!("{options}: {errno}"));
        }

        /// An image's content has to be read from the disk again.
        ///
        /// # Panics
        ///
        /// Where something on it is in use.
        pub fn forget(&self) {
            let image = self.dir.path().join("image");
            umount2(&self.path(), MntFlags::empty())
                .unwrap_or_else(|errno| panic!("umount: {errno}"));
            let file = std::fs::File::open(&image).unwrap_or_else(|error| panic!("image: {error}"));
            let cold = file.sync_all().and_then(|()| {
                Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?)
            });
            cold.unwrap_or_else(|error| panic!("fadvise: {error}"));
            let mounted =
                Command::new("mount").args(["-o", "loop"]).arg(image).arg(self.path()).status();
            assert!(mounted.is_ok_and(|status| status.success()), "mount");
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            if let Err(errno) = umount2(&self.path(), MntFlags::MNT_DETACH) {
                eprintln!("{}: {errno}", self.path().display());
            }
        }
    }
}

#[cfg(target_os = "freebsd")]
mod freebsd {
    use std::path::PathBuf;
    use std::process::Command;

    use super::{folder, run, skip};

    /// Mounts are seen by all here, and go when they are dropped. False, having said so, where more privileges
    /// are needed.
    #[must_use]
    pub fn private() -> bool {
        let is_root = rustix::process::geteuid().is_root();
        if !is_root {
            skip("mount", "run the tests as root");
        }
        is_root
    }

    /// A file system that is mounted while this lives.
    #[derive(Debug)]
    pub struct Mounted {
        dir: tempfile::TempDir,
    }

    impl Mounted {
        /// A new tmpfs.
        ///
        /// # Panics
        ///
        /// Where it can't be mounted.
        #[must_use]
        pub fn tmpfs(options: &str) -> Self {
            let new = Self { dir: folder() };
            run(Command::new("mount")
                .args(["-t", "tmpfs", "-o", options, "tmpfs"])
                .arg(new.path()));
            new
        }

        /// `None`, having said so: what Linux makes in a file is not there.
        #[must_use]
        pub fn image(kind: &str, _mib: u64) -> Option<Self> {
            skip(kind, "this is FreeBSD");
            None
        }

        /// Where it is mounted.
        #[must_use]
        pub fn path(&self) -> PathBuf {
            self.dir.path().join("mnt")
        }

        /// Nothing has to be read from a disk again.
        pub fn forget(&self) {}
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let unmounted = Command::new("umount").arg("-f").arg(self.path()).output();
            if !unmounted.as_ref().is_ok_and(|output| output.status.success()) {
                eprintln!("{}: {unmounted:?}", self.path().display());
            }
        }
    }
}
