//! A root file system that runs: a shell and tools, and the files that name users.

use std::fs;
use std::path::Path;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:80:81:web:/var/www:/bin/sh\n";

/// Debian's package busybox-static.
#[cfg(target_os = "linux")]
pub const BUSYBOX: &str = "/bin/busybox";

/// Whether this machine has what [`make`] needs.
#[must_use]
pub fn can() -> bool {
    #[cfg(target_os = "linux")]
    return Path::new(BUSYBOX).exists();
    #[cfg(target_os = "freebsd")]
    return Path::new("/bin/sh").exists();
}

/// Makes one in `dir`, which must be there and be empty: on Linux from the static busybox, on FreeBSD from
/// the base system.
///
/// # Panics
///
/// Where there is no `/bin/busybox`, or `dir` can't be written.
pub fn make(dir: &Path) {
    for name in ["bin", "dev", "etc", "proc", "root", "tmp", "var/www"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    programs(dir);
    fs::write(dir.join("etc/group"), "root:x:0:\nwww:x:81:\nmail:x:6:www\nstaff:x:50:\n").unwrap();
}

#[cfg(target_os = "linux")]
fn programs(dir: &Path) {
    let list = std::process::Command::new(BUSYBOX).arg("--list").output();
    let list = list.unwrap_or_else(|e| panic!("{BUSYBOX}: {e}: install busybox-static"));
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    fs::copy(BUSYBOX, dir.join("bin/busybox")).unwrap();
    for tool in list.lines().filter(|tool| *tool != "busybox") {
        std::os::unix::fs::symlink("busybox", dir.join("bin").join(tool)).unwrap();
    }
    fs::write(dir.join("etc/passwd"), PASSWD).unwrap();
}

#[cfg(target_os = "freebsd")]
fn programs(dir: &Path) {
    for crate::base::Content { path, source } in crate::base::programs() {
        let place = dir.join(path);
        fs::create_dir_all(place.parent().unwrap_or(dir)).unwrap();
        fs::copy(source, place).unwrap();
    }
    for (name, content) in crate::base::users(PASSWD) {
        fs::write(dir.join("etc").join(name), content).unwrap();
    }
}
