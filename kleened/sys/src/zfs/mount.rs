//! Mounting datasets, and which are mounted where.

use std::io;
use std::path::{Path, PathBuf};

/// How a dataset is mounted. The kernel takes `atime` from the dataset; these it does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountFlags {
    /// Nothing can be written (`readonly`).
    pub read_only: bool,
    /// Set-user-id bits count for nothing (`setuid=off`).
    pub no_setuid: bool,
    /// No program can be executed (`exec=off`).
    pub no_exec: bool,
    /// Device files are none (`devices=off`). FreeBSD has them on devfs alone.
    pub no_devices: bool,
}

/// A dataset that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Its name, or that of the snapshot.
    pub dataset: String,
    /// Where.
    pub at: PathBuf,
}

#[cfg(target_os = "freebsd")]
pub use freebsd::{dataset_mounted_at, mount_dataset, mounted, unmount};
#[cfg(target_os = "linux")]
pub use linux::{dataset_mounted_at, mount_dataset, mounted, unmount};

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::OsString;
    use std::fs::File;
    use std::io::{BufRead, BufReader};
    use std::os::unix::ffi::OsStringExt;

    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
    use rustix::mount::{MountFlags as Flags, UnmountFlags};

    use super::*;

    /// The dataset is mounted at `target`, a directory.
    ///
    /// # Errors
    ///
    /// `ENOENT` for either; `EBUSY` where it is mounted there; what `mount(2)` says.
    pub fn mount_dataset(dataset: &str, target: &Path, flags: MountFlags) -> io::Result<()> {
        let mut bits = Flags::empty();
        bits.set(Flags::RDONLY, flags.read_only);
        bits.set(Flags::NOSUID, flags.no_setuid);
        bits.set(Flags::NOEXEC, flags.no_exec);
        bits.set(Flags::NODEV, flags.no_devices);
        Ok(rustix::mount::mount(dataset, target, c"zfs", bits, c"zfsutil")?)
    }

    /// Nothing is mounted at `target` that was: the topmost of the mounts there is gone. With `force`,
    /// also where files of it are open; Linux then takes the mount away from the tree, and the dataset
    /// stays busy until they are closed.
    ///
    /// # Errors
    ///
    /// `EBUSY` where it is in use; `EINVAL` where nothing is mounted there; what `umount2(2)` says.
    pub fn unmount(target: &Path, force: bool) -> io::Result<()> {
        let force = if force { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        Ok(rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | force)?)
    }

    /// The dataset whose root directory `path` is; `None` where it is something else. Links are followed.
    ///
    /// # Errors
    ///
    /// What `statx(2)` and reading `/proc/self/mountinfo` say; `ENOENT` where there is no `path`.
    pub fn dataset_mounted_at(path: &Path) -> io::Result<Option<String>> {
        let found = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
        if found.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        if !found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Ok(None);
        }
        // No further than needed: the kernel writes it as it is read.
        for line in BufReader::new(File::open(TABLE)?).split(b'\n') {
            let line = line?;
            if let Some(line) = Line::read(&line).filter(|line| line.id == found.stx_mnt_id) {
                return Ok((line.is_zfs() && line.root == b"/").then(|| line.dataset()));
            }
        }
        Ok(None)
    }

    /// The datasets and snapshots that are mounted, in the order of the kernel's table: of two at one
    /// place the later one is seen.
    ///
    /// # Errors
    ///
    /// What reading `/proc/self/mountinfo` says.
    pub fn mounted() -> io::Result<Vec<Mounted>> {
        let table = std::fs::read(TABLE)?;
        // A bind mount of a directory in a dataset has another root.
        let whole = lines(&table).filter(|line| line.is_zfs() && line.root == b"/");
        let mounted = whole.map(|line| Mounted {
            dataset: line.dataset(),
            at: PathBuf::from(OsString::from_vec(unescape(line.place))),
        });
        Ok(mounted.collect())
    }

    const TABLE: &str = "/proc/self/mountinfo";

    /// What is needed of a line of `/proc/self/mountinfo`, see `proc_pid_mountinfo(5)`.
    struct Line<'a> {
        id: u64,
        root: &'a [u8],
        place: &'a [u8],
        kind: &'a [u8],
        source: &'a [u8],
    }

    impl<'a> Line<'a> {
        fn read(line: &'a [u8]) -> Option<Self> {
            let mut fields = line.split(|byte| *byte == b' ');
            let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
            let (root, place) = (fields.nth(2)?, fields.next()?);
            // The optional fields end with a dash.
            fields.find(|field| *field == b"-")?;
            Some(Self { id, root, place, kind: fields.next()?, source: fields.next()? })
        }

        fn is_zfs(&self) -> bool {
            self.kind == b"zfs"
        }

        fn dataset(&self) -> String {
            String::from_utf8_lossy(&unescape(self.source)).into_owned()
        }
    }

    fn lines(table: &[u8]) -> impl Iterator<Item = Line<'_>> {
        table.split(|byte| *byte == b'\n').filter_map(Line::read)
    }

    /// `\040` and others are what they stand for.
    fn unescape(text: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text;
        while let [first, after @ ..] = rest {
            let octal = after
                .get(..3)
                .filter(|_| *first == b'\\')
                .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
            bytes.push(octal.unwrap_or(*first));
            rest = if octal.is_some() { after.get(3..).unwrap_or_default() } else { after };
        }
        bytes
    }

    #[cfg(test)]
    mod tests {
        use std::os::unix::ffi::OsStrExt;

        use super::*;

        #[test]
        fn the_table_is_read() {
            let table = b"24 1 8:1 / / rw - ext4 /dev/vda rw\n\
                          31 24 0:52 / /tank/a\\040b\\134 rw,relatime shared:7 master:1 - zfs tank/a\\040b rw\n\
                          32 24 0:52 /sub /mnt rw - zfs tank rw\nno line\n33 24 0:1 / /x rw - zfs\n";
            let found: Vec<_> = lines(table).collect();
            assert_eq!(found.len(), 3);
            let zfs: Vec<_> =
                found.iter().filter(|line| line.is_zfs() && line.root == b"/").collect();
            assert_eq!(zfs.len(), 1);
            assert_eq!(zfs[0].dataset(), "tank/a b");
            assert_eq!(unescape(zfs[0].place), b"/tank/a b\\");
            assert_eq!(unescape(b"a\\04"), b"a\\04");
        }

        #[test]
        fn a_root_of_something_else_is_no_dataset() {
            assert_eq!(dataset_mounted_at(Path::new("/proc")).unwrap(), None);
            assert_eq!(dataset_mounted_at(Path::new("/usr/bin")).unwrap(), None);
            let missing = dataset_mounted_at(Path::new("/no/such")).unwrap_err();
            assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
        }

        #[test]
        fn names_with_zero_bytes_are_refused() {
            let flags = MountFlags::default();
            let error = mount_dataset("tank\0", Path::new("/mnt"), flags).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
            assert!(unmount(Path::new(std::ffi::OsStr::from_bytes(b"/mnt\0")), false).is_err());
        }
    }
}

#[cfg(target_os = "freebsd")]
mod freebsd {
    use nix::mount::MntFlags;
    use rustix::fs::{Mode, OFlags};

    use super::*;
    use crate::nmount;

    /// The dataset is mounted at `target`, a directory.
    ///
    /// # Errors
    ///
    /// `ENOENT` for either; `EBUSY` where it is mounted; what `nmount(2)` says.
    pub fn mount_dataset(dataset: &str, target: &Path, flags: MountFlags) -> io::Result<()> {
        let mut bits = nmount::Flags::empty();
        bits.set(nmount::Flags::MNT_RDONLY, flags.read_only);
        bits.set(nmount::Flags::MNT_NOSUID, flags.no_setuid);
        bits.set(nmount::Flags::MNT_NOEXEC, flags.no_exec);
        nmount::mount(c"zfs", Path::new(dataset), target, &[], bits)
    }

    /// Nothing is mounted at `target` that was: the topmost of the mounts there is gone. With `force`,
    /// also where files of it are open, which can't be used any more then.
    ///
    /// # Errors
    ///
    /// `EBUSY` where it is in use; `EINVAL` where nothing is mounted there; what `unmount(2)` says.
    pub fn unmount(target: &Path, force: bool) -> io::Result<()> {
        let flags = if force { MntFlags::MNT_FORCE } else { MntFlags::empty() };
        Ok(nix::mount::unmount(target, flags)?)
    }

    /// The dataset whose root directory `path` is; `None` where it is something else. Links are followed.
    ///
    /// # Errors
    ///
    /// What `statfs(2)` says; `ENOENT` where there is no `path`.
    pub fn dataset_mounted_at(path: &Path) -> io::Result<Option<String>> {
        let path = std::fs::canonicalize(path)?;
        let file = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let found = nmount::of_file(file)?;
        Ok(dataset(found).filter(|mount| mount.at == path).map(|mount| mount.dataset))
    }

    /// The datasets and snapshots that are mounted, in the order of the kernel's table: of two at one
    /// place the later one is seen.
    ///
    /// # Errors
    ///
    /// What `getfsstat(2)` says.
    pub fn mounted() -> io::Result<Vec<Mounted>> {
        Ok(nmount::table()?.into_iter().filter_map(dataset).collect())
    }

    fn dataset(mount: nmount::Entry) -> Option<Mounted> {
        (mount.kind == "zfs")
            .then(|| Mounted { dataset: mount.from.to_string_lossy().into_owned(), at: mount.at })
    }
}
