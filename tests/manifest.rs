//! Everything that can be seen of a tree, to compare two of them entry by entry.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use kleened_sys::fs::{self, Attributes, Flags, Node};
use rustix::fs::{FileType, Mode, OFlags};

/// What can be seen of one entry. What was done to it last (`ctime`), when it was made and when it was
/// read are not part of it: no copy can have the first two, and looking changes the third.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The type, as `ls -l` shows it.
    pub kind: &'static str,
    /// The twelve bits.
    pub mode: u32,
    /// The owner and the group.
    pub owner: (u32, u32),
    /// The length of a file.
    pub size: u64,
    /// The device of a node.
    pub node: u64,
    /// When it was changed, in seconds and nanoseconds.
    pub modified: (i64, i64),
    /// A link's text.
    pub text: Vec<u8>,
    /// Where a file has data, and not a hole.
    pub data: Vec<Range<u64>>,
    /// A hash of the data.
    pub content: u64,
    /// Immutable and the like.
    pub flags: Flags,
    /// The extended attributes, access control lists included.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first of its names in this tree, which says what is linked to what; nothing for a directory.
    pub first: Option<String>,
}

/// A tree: every entry by its path, the root as `.`.
pub type Manifest = BTreeMap<Vec<u8>, Item>;

/// Looks at a tree, without following links and without changing the times of reading.
///
/// # Errors
///
/// What the calls say.
pub fn manifest(root: &Path) -> io::Result<Manifest> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let mut look = Look { found: BTreeMap::new(), first: BTreeMap::new() };
    look.directory(root, b".")?;
    Ok(look.found)
}

struct Look {
    found: Manifest,
    first: BTreeMap<(u64, u64), Vec<u8>>,
}

impl Look {
    fn directory(&mut self, fd: OwnedFd, path: &[u8]) -> io::Result<()> {
        let attributes = fs::attributes(fd.as_fd())?;
        let mut item = Item::new(&attributes);
        item.xattrs = xattrs(Node::Open(fd.as_fd()))?;
        self.found.insert(path.to_owned(), item);
        let mut entries = Vec::new();
        let mut buffer = Vec::with_capacity(65536);
        let mut next = Some(0);
        while let Some(position) = next {
            next = fs::list_part(fd.as_fd(), position, &mut buffer, &mut entries)?;
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            let path = [path, b"/", entry.name.as_bytes()].concat();
            self.entry(fd.as_fd(), &entry.name, path)?;
        }
        Ok(())
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: Vec<u8>) -> io::Result<()> {
        let attributes = fs::attributes_at(dir, name)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        #[cfg(target_os = "linux")]
        let flags = flags | OFlags::NOATIME;
        let open = || rustix::fs::openat(dir, name, flags, Mode::empty());
        if attributes.kind == FileType::Directory {
            return self.directory(open()?, &path);
        }
        let mut item = Item::new(&attributes);
        match attributes.kind {
            FileType::RegularFile => {
                item.size = attributes.size;
                item.content(open()?, &attributes)?;
            }
            FileType::Symlink => {
                item.text = rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes();
            }
            FileType::BlockDevice | FileType::CharacterDevice => item.node = attributes.node,
            _ => (),
        }
        item.xattrs = xattrs(Node::At(dir, name))?;
        let first = self.first.entry(attributes.id).or_insert_with(|| path.clone());
        item.first = Some(first.escape_ascii().to_string());
        self.found.insert(path, item);
        Ok(())
    }
}

impl Item {
    fn new(attributes: &Attributes) -> Self {
        let modified = attributes.times.last_modification;
        Self {
            kind: match attributes.kind {
                FileType::RegularFile => "-",
                FileType::Directory => "d",
                FileType::Symlink => "l",
                FileType::Fifo => "p",
                FileType::Socket => "s",
                FileType::CharacterDevice => "c",
                FileType::BlockDevice => "b",
                FileType::Unknown => "?",
            },
            mode: attributes.mode,
            owner: (attributes.uid, attributes.gid),
            size: 0,
            node: 0,
            modified: (modified.tv_sec, modified.tv_nsec),
            text: Vec::new(),
            data: Vec::new(),
            content: 0,
            flags: attributes.flags,
            xattrs: BTreeMap::new(),
            first: None,
        }
    }

    fn content(&mut self, file: OwnedFd, attributes: &Attributes) -> io::Result<()> {
        let mut hasher = DefaultHasher::new();
        let mut buffer = vec![0; 1 << 20];
        let mut end = 0;
        while let Some(data) = fs::next_data(&file, end, attributes.size)? {
            end = data.end;
            let mut at = data.start;
            while at < data.end {
                let wanted = usize::try_from(data.end - at).unwrap_or(usize::MAX).min(buffer.len());
                let count = rustix::io::pread(&file, &mut buffer[..wanted], at)?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                hasher.write(&buffer[..count]);
                at += count as u64;
            }
            self.data.push(data);
        }
        self.content = hasher.finish();
        Ok(())
    }
}

fn xattrs(node: Node<'_>) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let (mut names, mut value) = (Vec::new(), Vec::new());
    match fs::list_xattrs(node, &mut names) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(BTreeMap::new()),
        other => other?,
    }
    let mut found = BTreeMap::new();
    for name in names.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        fs::get_xattr(node, &CString::new(name)?, &mut value)?;
        found.insert(name.to_owned(), value.clone());
    }
    Ok(found)
}

/// What differs, a line for each entry and aspect; nothing where the trees are the same.
#[must_use]
pub fn differences(source: &Manifest, copy: &Manifest) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, a) in source {
        let shown = path.escape_ascii();
        let Some(b) = copy.get(path) else {
            lines.push(format!("{shown}: missing"));
            continue;
        };
        let mut line = String::new();
        macro_rules! compare {
            ($($field:ident),*) => {$(
                if a.$field != b.$field {
                    let name = stringify!($field);
                    let _ = write!(line, " {name} {:?} became {:?};", a.$field, b.$field);
                }
            )*};
        }
        compare!(
            kind, mode, owner, size, node, modified, text, data, content, flags, xattrs, first
        );
        if !line.is_empty() {
            lines.push(format!("{shown}:{line}"));
        }
    }
    let more = copy.keys().filter(|path| !source.contains_key(*path));
    lines.extend(more.map(|path| format!("{}: only in the copy", path.escape_ascii())));
    lines
}
