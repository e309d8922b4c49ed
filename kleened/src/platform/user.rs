//! Users and groups by the files in a container's `/etc`. Nothing else is asked: a directory service
//! of the host's has no say inside.

use std::io::{self, Read};
use std::os::fd::AsFd;

use rustix::fs::{FileType, OFlags};

use super::Process;

/// What a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups.
    pub(super) groups: Vec<u32>,
    pub(super) name: Option<String>,
    pub(super) home: String,
    pub(super) shell: String,
}

impl User {
    /// The user that the process is to run as, by the files of the container that this process is in.
    ///
    /// # Errors
    ///
    /// Which file can't be read, or which name is not there, in words.
    pub(super) fn of(process: &Process) -> Result<Self, String> {
        Self::find(&process.user, &read("/etc/passwd")?, &read("/etc/group")?)
    }

    /// The user that `USER[:GROUP]` names, each by name or number; empty for the superuser. With a
    /// group, the process is in no other. A number need not be in the files.
    ///
    /// # Errors
    ///
    /// Which name is not there, in words.
    pub(super) fn find(text: &str, passwd: &[u8], group: &[u8]) -> Result<Self, String> {
        let (name, wanted_group) = match text.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (text, None),
        };
        let name = if name.is_empty() { "0" } else { name };
        let number = number(name);
        let entry = entries(passwd).find(|fields| {
            // A user may have a number as its name.
            fields.first() == Some(&name) || number.is_some() && field(fields, 2) == number
        });
        let mut user = match (&entry, number) {
            (Some(fields), _) => {
                let text = |index: usize| fields.get(index).filter(|t| !t.is_empty()).copied();
                let broken =
                    || format!("user {name} has no valid number in the container's /etc/passwd");
                Self {
                    uid: field(fields, 2).ok_or_else(broken)?,
                    gid: field(fields, 3).ok_or_else(broken)?,
                    groups: Vec::new(),
                    name: text(0).map(str::to_owned),
                    home: text(5).unwrap_or("/").to_owned(),
                    shell: text(6).unwrap_or("/bin/sh").to_owned(),
                }
            }
            (None, Some(uid)) => Self {
                uid,
                gid: 0,
                groups: Vec::new(),
                name: (uid == 0).then(|| "root".to_owned()),
                home: if uid == 0 { "/root" } else { "/" }.to_owned(),
                shell: "/bin/sh".to_owned(),
            },
            (None, None) => {
                return Err(format!("there is no user {name} in the container's /etc/passwd"));
            }
        };
        match wanted_group {
            Some(wanted) => {
                let entry = entries(group).find(|fields| fields.first() == Some(&wanted));
                let gid =
                    entry.as_ref().and_then(|fields| field(fields, 2)).or(self::number(wanted));
                user.gid = gid.ok_or_else(|| {
                    format!("there is no group {wanted} in the container's /etc/group")
                })?;
            }
            None => {
                let name = user.name.as_deref();
                let member = |fields: &Vec<&str>| {
                    fields.get(3).is_some_and(|names| names.split(',').any(|n| Some(n) == name))
                };
                let gids = entries(group).filter(member).filter_map(|fields| field(&fields, 2));
                user.groups = gids.filter(|gid| *gid != user.gid).collect();
                user.groups.sort_unstable();
                user.groups.dedup();
            }
        }
        Ok(user)
    }
}

/// The login class of the user by the lines of `/etc/master.passwd`, or the one that everybody has who has
/// none: `login_getpwclass(3)`.
#[cfg_attr(target_os = "linux", allow(dead_code, reason = "Linux has no login classes"))]
pub(super) fn login_class(user: &User, master: &[u8]) -> String {
    let own = entries(master).find(|fields| match &user.name {
        Some(name) => fields.first() == Some(&name.as_str()),
        None => field(fields, 2) == Some(user.uid),
    });
    let class = own.and_then(|fields| fields.get(4).map(|class| (*class).to_owned()));
    class
        .filter(|class| !class.is_empty())
        .unwrap_or_else(|| if user.uid == 0 { "root" } else { "default" }.to_owned())
}

/// The lines of a file, in fields. A line that is no text is nobody's.
fn entries(file: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    let lines = file.split(|byte| *byte == b'\n').filter_map(|line| str::from_utf8(line).ok());
    lines.filter(|line| !line.starts_with('#')).map(|line| line.split(':').collect())
}

fn field(fields: &[&str], index: usize) -> Option<u32> {
    number(fields.get(index)?)
}

/// A user's or group's number. The last one stands for none in the kernel's calls.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// The content of a file that somebody else may have made: empty where it is not there or no file.
///
/// # Errors
///
/// What `open(2)` and `read(2)` say, in words.
pub(super) fn read(path: &str) -> Result<Vec<u8>, String> {
    open(path).map_err(|error| format!("can't read its {path}: {error}"))
}

fn open(path: &str) -> io::Result<Vec<u8>> {
    const LONGEST: u64 = 16 * 1024 * 1024;
    // Opening a fifo or a device must not block.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let root = kleened_sys::fs::open_directory(rustix::fs::CWD, "/")?;
    // Never through a link of /proc that the kernel makes up, which can lead anywhere.
    let file = match kleened_sys::fs::resolve_in_root(root.as_fd(), path, flags) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut bytes = Vec::new();
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::RegularFile {
        std::fs::File::from(file).take(LONGEST).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"# FreeBSD has comments\nroot:x:0:0:root:/root:/bin/ash\n\
        www:x:80:81:web:/var/www:\nnone:x:4294967295:0::/:\nbad:x:z:1::/:\n\xff:x:5:5::/:\n1001:x:7:7::/seven:/bin/sh\n";
    const GROUP: &[u8] = b"root:x:0:\nwww:x:81:\nstaff:x:50:joe,www\nmail:x:6:www\n";

    fn find(text: &str) -> Result<User, String> {
        User::find(text, PASSWD, GROUP)
    }

    #[test]
    fn names_and_numbers() {
        for text in ["", "0", "root", ":root"] {
            let user = find(text).unwrap();
            assert_eq!((user.uid, user.gid, user.home.as_str()), (0, 0, "/root"), "{text:?}");
        }
        for text in ["www", "80"] {
            let user = find(text).unwrap();
            assert_eq!((user.uid, user.gid, user.groups.as_slice()), (80, 81, &[6, 50][..]));
            assert_eq!((user.name.as_deref(), user.shell.as_str()), (Some("www"), "/bin/sh"));
        }
        let user = find("www:staff").unwrap();
        assert_eq!((user.gid, user.groups.len()), (50, 0));
        let user = find("5000:77").unwrap();
        assert_eq!((user.uid, user.gid, user.name, user.home.as_str()), (5000, 77, None, "/"));
        assert_eq!(find("1001").unwrap().uid, 7);
        for none in ["4294967295", "0:4294967295", "none"] {
            assert!(find(none).is_err(), "{none}");
        }
    }

    #[test]
    fn login_classes() {
        let master = b"root:*:0:0::0:0:Charlie &:/root:/bin/sh\n\
            www:*:80:80:daemon:0:0:web:/:/usr/sbin/nologin\nstaff:*:5000:5000:staff:0:0::/:\n";
        let class = |text| login_class(&find(text).unwrap(), master);
        assert_eq!(["", "www", "5000", "4711"].map(class), ["root", "daemon", "staff", "default"]);
        assert_eq!(login_class(&find("www").unwrap(), b"www:*:80\n"), "default");
    }

    #[test]
    fn who_is_not_there_is_named() {
        for (text, missing) in [("joe", "joe"), ("www:none", "none"), ("bad", "bad"), ("-1", "-1")]
        {
            let error = find(text).unwrap_err();
            assert!(error.contains(missing), "{error}");
        }
        let empty = User::find("0", b"", b"").unwrap();
        assert_eq!((empty.uid, empty.home.as_str()), (0, "/root"));
    }
}
