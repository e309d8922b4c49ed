//! Images to test with: real root file systems, made from Debian's static busybox, or from FreeBSD's own base system.

use std::collections::BTreeMap;
use std::path::Path;

/// The programs of the static busybox that are there.
#[cfg(target_os = "linux")]
const APPLETS: &str = "ash awk cat chmod chown cp cut date dd df echo env false find grep head hostname id ifconfig \
    kill ln ls md5sum mkdir mknod mount mv nc printenv ps pwd readlink rm rmdir sed seq setsid \
    sh sha256sum sleep sort stat stty sync tail tar tee test touch true tty umount uname unshare \
    wc which whoami xargs yes";

/// The users.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    www:x:80:80:web:/usr/share/site:/bin/sh\n\
    nobody:x:65534:65534::/:/bin/sh\n";

/// An archive under construction.
pub struct Archive(tar::Builder<Vec<u8>>);

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Archive({} bytes)", self.0.get_ref().len())
    }
}

impl Archive {
    /// An archive with nothing in it.
    #[must_use]
    pub fn empty() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// An archive with a shell and tools, users, and a web site to copy into volumes.
    ///
    /// # Panics
    ///
    /// On Linux, when Debian's package busybox-static is not installed.
    #[must_use]
    pub fn busybox() -> Self {
        let mut archive = Self::empty();
        for (folder, mode) in [
            ("bin", 0o755),
            ("etc", 0o755),
            ("dev", 0o755),
            ("proc", 0o755),
            ("root", 0o700),
            ("tmp", 0o1777),
            ("usr", 0o755),
            ("usr/share", 0o755),
            ("var", 0o755),
            ("var/empty", 0o755),
            ("mnt", 0o755),
        ] {
            archive.folder(folder, mode);
        }
        archive.programs();
        archive.file(
            "etc/group",
            b"root:x:0:\nwww:x:80:\nstaff:x:20:www\nnogroup:x:65534:\n",
            0o644,
        );
        archive.owned_folder("usr/share/site", 0o750, 80, 80);
        archive.file("usr/share/site/index.html", b"<h1>It works</h1>\n", 0o644);
        archive.file("usr/share/site/.htaccess", b"deny from none\n", 0o600);
        archive.hard_link("usr/share/site/home.html", "usr/share/site/index.html");
        archive.link("usr/share/site/current", "index.html");
        archive.folder("usr/share/site/img", 0o755);
        archive.file("usr/share/site/img/logo.svg", b"<svg/>\n", 0o644);
        archive
    }

    #[cfg(target_os = "linux")]
    fn programs(&mut self) {
        let path =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        let busybox = std::fs::read(path.expect("install busybox-static")).expect("read busybox");
        self.file("bin/busybox", &busybox, 0o755);
        for applet in APPLETS.split_whitespace() {
            self.link(&format!("bin/{applet}"), "busybox");
        }
        self.file("etc/passwd", PASSWD.as_bytes(), 0o644);
    }

    #[cfg(target_os = "freebsd")]
    fn programs(&mut self) {
        for folder in ["lib", "libexec", "usr/lib"] {
            self.folder(folder, 0o755);
        }
        for crate::base::Content { path, source } in crate::base::programs() {
            let content = std::fs::read(&source).expect("read a program");
            self.file(&path, &content, 0o755);
        }
        for (name, content) in crate::base::users(PASSWD) {
            // getpwuid(3) reads the one without passwords as whom it likes.
            let mode = if matches!(&*name, "passwd" | "pwd.db") { 0o644 } else { 0o600 };
            self.file(&format!("etc/{name}"), &content, mode);
        }
    }

    /// Adds a directory.
    pub fn folder(&mut self, path: &str, mode: u32) -> &mut Self {
        self.owned_folder(path, mode, 0, 0)
    }

    /// Adds a directory that belongs to somebody.
    pub fn owned_folder(&mut self, path: &str, mode: u32, uid: u64, gid: u64) -> &mut Self {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        header.set_uid(uid);
        header.set_gid(gid);
        self.append(header, path, None, &[])
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, content: &[u8], mode: u32) -> &mut Self {
        self.append(header(tar::EntryType::Regular, mode, content.len()), path, None, content)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.append(header(tar::EntryType::Symlink, 0o777, 0), path, Some(target), &[])
    }

    /// Adds a hard link.
    pub fn hard_link(&mut self, path: &str, target: &str) -> &mut Self {
        self.append(header(tar::EntryType::Link, 0o644, 0), path, Some(target), &[])
    }

    /// Adds an entry with exactly that name and target, however hostile.
    ///
    /// # Panics
    ///
    /// When they don't fit into a header.
    pub fn append(
        &mut self,
        mut header: tar::Header,
        path: &str,
        target: Option<&str>,
        data: &[u8],
    ) -> &mut Self {
        // The crate's own setters refuse what a hostile archive would have.
        let bytes = header.as_old_mut();
        bytes.name[..path.len()].copy_from_slice(path.as_bytes());
        if let Some(target) = target {
            bytes.linkname[..target.len()].copy_from_slice(target.as_bytes());
        }
        header.set_cksum();
        self.0.append(&header, data).expect("append to memory");
        self
    }

    /// The archive's bytes.
    ///
    /// # Panics
    ///
    /// Never: it is written to memory.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().expect("finish in memory")
    }
}

/// A header of that type.
#[must_use]
pub fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header
}

/// The archive of [`Archive::busybox`].
#[must_use]
pub fn busybox() -> Vec<u8> {
    Archive::busybox().bytes()
}

/// The files below a directory: path to content, a link's target, or `/` for a directory.
///
/// # Panics
///
/// When it can't be read.
#[must_use]
pub fn listing(directory: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("read a folder") {
            let path = entry.expect("read a folder").path();
            let name =
                path.strip_prefix(directory).expect("it is below").to_string_lossy().into_owned();
            let kind = path.symlink_metadata().expect("it is there").file_type();
            let content = if kind.is_symlink() {
                std::fs::read_link(&path).expect("read a link").to_string_lossy().into_owned()
            } else if kind.is_dir() {
                folders.push(path);
                "/".into()
            } else {
                String::from_utf8_lossy(&std::fs::read(&path).expect("read a file")).into_owned()
            };
            found.insert(name, content);
        }
    }
    found
}
