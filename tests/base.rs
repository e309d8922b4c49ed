//! What a small root is made of on FreeBSD: programs of this machine's own base system, with the libraries that
//! they need, and users in the databases that the C library reads.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs, which come to be in `bin`. What this release has not is left out.
const PROGRAMS: &str = "[ awk cat chflags chmod chown cp cut date dd df echo env expr false find getfacl \
    getextattr grep head hostname id ifconfig kill ln ls lsextattr md5 md5sum mkdir mkfifo mknod mount mv nc \
    pgrep printenv ps pwd readlink realpath rm rmdir sed seq setextattr setfacl setsid sh sha256sum sleep sort stat \
    stty sync sysctl tail tar tee test touch tr true tty umount uname wc which whoami xargs yes";

/// A file of a root.
#[derive(Debug)]
pub struct Content {
    /// Where it belongs, below the root.
    pub path: String,
    /// Where it is now.
    pub source: PathBuf,
}

/// The programs and what they need to run.
///
/// # Panics
///
/// Where the base system has no shell, or `ldd(1)` fails.
#[must_use]
pub fn programs() -> Vec<Content> {
    let folders = ["/bin", "/sbin", "/usr/bin", "/usr/sbin"];
    let place = |name: &str| {
        folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
    };
    let found: Vec<(&str, PathBuf)> =
        PROGRAMS.split_whitespace().filter_map(|name| Some((name, place(name)?))).collect();
    assert!(found.iter().any(|(name, _)| *name == "sh"), "there is no shell");
    let listed = Command::new("ldd")
        .args(["-f", "%p\\n"])
        .args(found.iter().map(|(_, path)| path))
        .output()
        .expect("run ldd");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut libraries: BTreeSet<&str> = listed.lines().map(str::trim).collect();
    libraries.insert("/libexec/ld-elf.so.1");
    let libraries = libraries.into_iter().filter(|path| path.starts_with('/'));
    let libraries = libraries
        .filter(|path| Path::new(path).is_file())
        .map(|path| Content { path: path.trim_start_matches('/').to_owned(), source: path.into() });
    let programs = found
        .into_iter()
        .map(|(name, source)| Content { path: format!("bin/{name}"), source })
        .collect::<Vec<_>>();
    libraries.chain(programs).collect()
}

/// The files for `etc` that say who the users are: these lines, as `passwd(5)` has them without the fields that
/// Linux does not know.
///
/// # Panics
///
/// Where `pwd_mkdb(8)` fails.
#[must_use]
pub fn users(passwd: &str) -> Vec<(String, Vec<u8>)> {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let master: String = passwd
        .lines()
        .filter_map(|line| {
            let [name, _, uid, gid, gecos, home, shell] =
                line.split(':').collect::<Vec<_>>().try_into().ok()?;
            Some(format!("{name}:*:{uid}:{gid}::0:0:{gecos}:{home}:{shell}\n"))
        })
        .collect();
    let file = folder.path().join("new");
    fs::write(&file, master).expect("write master.passwd");
    let made = Command::new("pwd_mkdb").args(["-p", "-d"]).arg(folder.path()).arg(&file).output();
    let made = made.expect("run pwd_mkdb");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    ["master.passwd", "passwd", "pwd.db", "spwd.db"]
        .map(|name| (name.to_owned(), fs::read(folder.path().join(name)).expect("read users")))
        .into()
}
