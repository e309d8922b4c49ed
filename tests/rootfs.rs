//! A root file system that runs: a static busybox, and the files that name users.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// Debian's package busybox-static.
pub const BUSYBOX: &str = "/bin/busybox";

/// Makes one in `dir`, which must be there and be empty.
///
/// # Panics
///
/// Where there is no `/bin/busybox`, or `dir` can't be written.
pub fn make(dir: &Path) {
    let list = Command::new(BUSYBOX).arg("--list").output();
    let list = list.unwrap_or_else(|e| panic!("{BUSYBOX}: {e}: install busybox-static"));
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    for name in ["bin", "dev", "etc", "proc", "root", "tmp", "var/www"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    fs::copy(BUSYBOX, dir.join("bin/busybox")).unwrap();
    for tool in list.lines().filter(|tool| *tool != "busybox") {
        symlink("busybox", dir.join("bin").join(tool)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nwww:x:80:81:web:/var/www:/bin/sh\n";
    fs::write(dir.join("etc/passwd"), passwd).unwrap();
    fs::write(dir.join("etc/group"), "root:x:0:\nwww:x:81:\nmail:x:6:www\nstaff:x:50:\n").unwrap();
}
