//! Nothing hostile gets through, and nothing damaged passes for whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use kleene_tests::manifest::Manifest;
use kleene_tests::mounts::{Mounted, private};
use kleene_tests::tree::{assert_same_description, describe};
use kleened::archive::{self, Error, Extract};

use crate::make::{COMPRESSIONS, Place, Tar, extract, gzip, tar, xz, zstd};

#[test]
fn refused() {
    let long = "x".repeat(90);
    let cases: Vec<(&str, Tar, &str)> = vec![
        ("an absolute name", tar().file("/etc/passwd", "x"), "'/etc/passwd' has an absolute name"),
        ("dots first", tar().file("../outside/file", "x"), "'../outside/file' has '..'"),
        ("dots inside", tar().file("a/../../outside/file", "x"), "has '..'"),
        ("dots at the end", tar().dir("a/.."), "has '..'"),
        ("dots in a pax name", tar().pax(&[("path", b"../x")]).file("y", "x"), "has '..'"),
        (
            "an absolute GNU name",
            tar().entry(b'L', b"././@LongLink", b"", b"/etc/x\0").file("y", "x"),
            "'/etc/x' has an absolute name",
        ),
        ("NUL", tar().pax(&[("path", b"a\0b")]).file("y", "x"), "has a NUL in its name"),
        ("no name", tar().file("", "x"), "has no name"),
        ("the top as a file", tar().file("./", "").file(".", "x"), "is no directory"),
        ("the top as a link", tar().link(".", "/etc"), "is no directory"),
        (
            "a link above",
            tar().link("a", "../outside"),
            "is a link to '../outside', which leads outside",
        ),
        ("a link above, late", tar().link("a/b", "../c/../../d"), "which leads outside"),
        (
            "through a relative link",
            tar().link("up/a", "../b").file("up/a/file", "x"),
            "'up/a' is a link or a file, and a later entry is below it",
        ),
        (
            "through an absolute link",
            tar().link("etc", "/outside").file("etc/file", "x"),
            "'etc' is a link or a file",
        ),
        (
            "through a chain of links",
            tar().link("a", "b").link("b", "/").file("a/etc/x", "x"),
            "'a' is a link or a file",
        ),
        ("through a file", tar().file("a", "").file("a/b", "x"), "'a' is a link or a file"),
        (
            "a directory becomes a link",
            tar().dir("a").file("a/x", "").link("a", "/etc").file("a/passwd", "x"),
            "'a' would take the place of a directory",
        ),
        (
            "an empty directory becomes a link",
            tar().dir("a").link("a", "/etc").file("a/passwd", "x"),
            "'a' would take the place of a directory",
        ),
        (
            "a hard link outside",
            tar().hard("a", "../outside/file"),
            "is a hard link to '../outside/file'",
        ),
        (
            "an absolute hard link",
            tar().hard("a", "/etc/passwd"),
            "is a hard link to '/etc/passwd'",
        ),
        (
            "a hard link through a link",
            tar().link("etc", "/etc").hard("a", "etc/passwd"),
            "is a link or a file",
        ),
        ("a hard link to nothing", tar().hard("a", "b"), "which is no file before it"),
        ("a hard link to a directory", tar().dir("b").hard("a", "b"), "which is no file before it"),
        ("a character device", tar().entry(b'3', b"null", b"", b""), "'null' is a device node"),
        ("a block device", tar().entry(b'4', b"disk", b"", b""), "'disk' is a device node"),
        ("an unknown type", tar().entry(b'M', b"part", b"", b""), "is of type 'M'"),
        (
            "an owner out of range",
            tar().pax(&[("uid", b"4294967295")]).file("a", ""),
            "out of range",
        ),
        ("a negative size", tar().pax(&[("size", b"-1")]).file("a", ""), "a size that is none"),
        (
            "a size beyond all files",
            tar().pax(&[("size", b"18446744073709551615")]).file("a", ""),
            "a size out of range",
        ),
        (
            "a time that is none",
            tar().pax(&[("mtime", b"soon")]).file("a", ""),
            "a time that is none",
        ),
        (
            "an ACL as text",
            tar().pax(&[("SCHILY.acl.access", b"user::rwx")]).file("a", ""),
            "an ACL as text",
        ),
        (
            "an attribute that can't be",
            tar().pax(&[("SCHILY.xattr.nonsense.name", b"x")]).file("a", ""),
            "attribute 'nonsense.name'",
        ),
        (
            "a map that goes back",
            tar()
                .pax(&[("GNU.sparse.map", b"512,1,0,1"), ("GNU.sparse.size", b"1000")])
                .file("a", "xy"),
            "a map of holes that makes no sense",
        ),
        (
            "a map beyond its file",
            tar().pax(&[("GNU.sparse.map", b"0,2"), ("GNU.sparse.size", b"1")]).file("a", "xy"),
            "a map of holes that makes no sense",
        ),
        (
            "a map that overflows",
            tar()
                .pax(&[("GNU.sparse.map", b"18446744073709551615,2"), ("GNU.sparse.size", b"9")])
                .file("a", "xy"),
            "a map of holes that makes no sense",
        ),
        (
            "a map longer than the content",
            tar().pax(&[("GNU.sparse.map", b"0,2,5,1"), ("GNU.sparse.size", b"9")]).file("a", "xy"),
            "a map of holes that makes no sense",
        ),
        (
            "holes of 8 EiB",
            tar()
                .pax(&[("GNU.sparse.map", b"0,2"), ("GNU.sparse.size", b"9223372036854775808")])
                .file("a", "xy"),
            "a map of holes that makes no sense",
        ),
        ("a component too long", tar().pax(&[("path", &[b'n'; 256])]).file("y", ""), "cannot make"),
        (
            "an escape sequence in a name",
            tar().link("a\u{1b}[2J", "/x").file("a\u{1b}[2J/y", ""),
            r"'a\u{1b}[2J'",
        ),
        ("a long name's end is shown", tar().file(&format!("{long}/../x"), ""), "/../x' has '..'"),
    ];
    for (what, archive, expected) in cases {
        let place = Place::new();
        let before = place.outside();
        let error = extract(&archive.end(), &place.to()).expect_err(what).to_string();
        assert!(error.contains(expected), "{what}: {error}");
        assert!(!error.chars().any(char::is_control), "{what}: {error:?}");
        assert!(place.outside() == before, "{what} reached outside");
    }
}

#[test]
fn damaged() {
    let one = tar().file("one", "content");
    let header = Tar::header(b'0', b"big", b"", 1 << 40);
    let metadata = Tar::header(b'x', b"pax", b"", 17 << 20);
    let long_name = Tar::header(b'L', b"././@LongLink", b"", 17 << 20);
    let mut bad_sum = one.clone().end();
    bad_sum[600] ^= 1;
    let mut second_sum = one.clone().file("two", "").end();
    second_sum[1024] ^= 1;
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", vec![], "the archive is empty"),
        ("text", b"hello\n".to_vec(), "this is no tar archive"),
        ("long text", b"hello\n".repeat(1000), "this is no tar archive"),
        ("zip", [&b"PK\x03\x04"[..], &[0; 1000]].concat(), "this is no tar archive"),
        ("bzip2", [&b"BZh9"[..], &[0; 1000]].concat(), "this is no tar archive"),
        ("compressed text", gzip(b"hello\n"), "this is no tar archive"),
        ("no end marker", one.0.clone(), "the end marker is missing"),
        ("more after the end", [one.clone().end(), b"x".to_vec()].concat(), "goes on after"),
        ("a second archive", [one.clone().end(), one.clone().end()].concat(), "goes on after"),
        ("a second header", second_sum, "a header's checksum does not hold"),
        ("a size that lies", tar().raw(header, b"x").end(), "cut off"),
        ("metadata that lies", tar().raw(metadata, b"x").end(), "more than 16 MiB"),
        ("a long name that lies", tar().raw(long_name, b"x").end(), "more than 16 MiB"),
        ("a pax header alone", tar().pax(&[("path", b"x")]).end(), "where an entry was announced"),
        (
            "a pax header of nonsense",
            tar().entry(b'x', b"pax", b"", b"99 x").file("a", "").end(),
            "makes no sense",
        ),
        (
            "a global path beyond all paths",
            tar().global(&[("path", &[b'p'; 4097])]).file("a", "").end(),
            "longer than any path",
        ),
        (
            "a global attribute",
            tar().global(&[("SCHILY.xattr.user.a", b"b")]).file("a", "").end(),
            "which only one entry can have",
        ),
        (
            "gzip with garbage",
            [gzip(&one.clone().end()), b"garbage".repeat(3)].concat(),
            "other bytes follow what gzip",
        ),
        (
            "gzip with a line",
            [gzip(&one.clone().end()), b"\nx\n".to_vec()].concat(),
            "other bytes follow what gzip",
        ),
        ("xz with garbage", [xz(&one.clone().end()), b"garbage!".repeat(3)].concat(), "damaged"),
        ("zstd with garbage", [zstd(&one.clone().end()), b"garbage".repeat(3)].concat(), "damaged"),
    ];
    for (what, bytes, expected) in cases {
        let place = Place::new();
        let error = extract(&bytes, &place.to()).expect_err(what);
        assert!(matches!(error, Error::Damaged(_)), "{what}: {error:?}");
        assert!(error.to_string().contains(expected), "{what}: {error}");
    }
}

#[test]
fn a_cut_at_any_byte_is_noticed() {
    let bytes =
        tar().dir("d").file("d/one", "content").pax(&[("mtime", b"1.5")]).file("two", "2").end();
    for (name, compress) in COMPRESSIONS {
        let whole = compress(&bytes);
        // The second half of the end marker holds nothing.
        let end = if name == "tar" { whole.len() - 512 } else { whole.len() };
        // Most of a plain one is padding.
        for length in (0..end).step_by(if name == "tar" { 41 } else { 1 }) {
            let place = Place::new();
            let cut = whole.get(..length).unwrap();
            let error = extract(cut, &place.to()).expect_err("a cut archive was taken");
            assert!(matches!(error, Error::Damaged(_)), "{name} cut at {length}: {error:?}");
        }
    }
}

#[test]
fn a_damaged_byte_is_noticed_or_harmless() {
    let bytes = tar()
        .dir("d")
        .file("d/one", "content")
        .pax(&[("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")])
        .file("two", "2")
        .link("link", "d/one")
        .hard("hard", "two")
        .end();
    for (name, compress) in COMPRESSIONS {
        let place = Place::new();
        let whole = compress(&bytes);
        extract(&whole, &place.to()).unwrap();
        let (before, good) = (place.outside(), describe(&place.to()));
        for index in 0..whole.len() {
            // Most of a plain one is zeros.
            if whole.get(index) != Some(&0) || index % 97 == 0 {
                let mut damaged = whole.clone();
                *damaged.get_mut(index).unwrap() ^= 1 << (index % 8);
                let to = place.dir.path().join("damaged");
                let result = extract(&damaged, &to);
                if name != "tar" && result.is_ok() {
                    // A byte of the format that means nothing, as the time in gzip's header.
                    assert_same_description(&good_times(&good), &good_times(&describe(&to)));
                }
                assert!(place.outside() == before, "{name} byte {index}");
                fs::remove_dir_all(&to).unwrap();
            }
        }
    }
}

/// Without the top, whose time is when it was made.
fn good_times(tree: &Manifest) -> Manifest {
    tree.iter().filter(|(name, _)| *name != b".").map(|(n, t)| (n.clone(), t.clone())).collect()
}

#[test]
fn bombs_take_no_memory() {
    // Zeros, a thousand times smaller.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
    let header = tar().raw(Tar::header(b'0', b"big", b"", 256 << 20), b"").0;
    encoder.write_all(&header).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..256 {
        encoder.write_all(&zeros).unwrap();
    }
    encoder.write_all(&[0; 1024]).unwrap();
    let bomb = encoder.finish().unwrap();
    // A window of 2 GiB, a dictionary of 1.5 GiB.
    let mut long = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    long.window_log(31).unwrap();
    long.write_all(&tar().file("a", "b").end()).unwrap();
    let window = long.finish().unwrap();
    let mut options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
    options.dict_size(1536 << 20);
    let mut dictionary = xz(&tar().file("a", "b").end());
    // The dictionary's size is a byte of the block's header, which has a checksum at its end.
    let block = dictionary.get_mut(12..24).unwrap();
    block[4] = 39;
    let sum = crc32(&block[..8]);
    block[8..12].copy_from_slice(&sum.to_le_bytes());

    in_small_file_system(64 << 20, move |dir| {
        let before = peak_memory();
        let error = extract(&bomb, &dir.join("bomb")).unwrap_err();
        let Error::Io { source, .. } = &error else { panic!("{error:?}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        for (what, bytes) in [("zstd", &window), ("xz", &dictionary)] {
            let error = extract(bytes, &dir.join(what)).unwrap_err();
            assert!(matches!(error, Error::Damaged(_)), "{what}: {error:?}");
        }
        let grown = peak_memory().saturating_sub(before);
        assert!(grown < 48 << 20, "{grown} bytes more than before");
    });
}

/// An archive of a few KiB, compressed, that would otherwise have its records copied for every entry.
#[test]
fn global_records_are_read_once() {
    let names: Vec<String> = (0..30_000).map(|n| format!("VENDOR.{n}")).collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|name| (&**name, &b"value"[..])).collect();
    let mut archive = tar().global(&records);
    for n in 0..1_000 {
        archive =
            archive.global(&[("mtime", b"1")]).entry(b'5', format!("{n}").as_bytes(), b"", b"");
    }
    let place = Place::new();
    let used =
        || nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD).unwrap();
    let before = used();
    extract(&archive.end(), &place.to()).unwrap();
    let took = used().user_time() - before.user_time();
    assert!(took.tv_sec() < 5, "{took}");
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Runs `test` with a folder on a file system of that many bytes, which nobody else sees.
fn in_small_file_system(size: u64, test: impl FnOnce(&Path) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if private() {
            test(&Mounted::tmpfs(&format!("size={size}")).path());
        }
    });
    if let Err(failure) = thread.join() {
        std::panic::resume_unwind(failure);
    }
}

#[test]
fn a_full_disk_is_told_as_such() {
    in_small_file_system(1 << 20, |dir| {
        let bytes = tar().file("big", &"x".repeat(2 << 20)).end();
        let error = extract(&bytes, &dir.join("to")).unwrap_err();
        assert!(error.to_string().contains("cannot write 'big'"), "{error}");
        let Error::Io { source, .. } = error else { panic!() };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    });
}

#[test]
fn an_input_that_fails_is_not_called_damaged() {
    struct Failing(io::Cursor<Vec<u8>>);
    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                read => Ok(read),
            }
        }
    }
    let bytes = tar().file("one", &"x".repeat(5000)).end();
    for (name, compress) in COMPRESSIONS {
        let mut cut = compress(&bytes);
        cut.truncate(cut.len() / 2);
        let place = Place::new();
        let to = File::open(place.to()).unwrap();
        let mut input = Failing(io::Cursor::new(cut));
        let error = archive::extract(&mut input, to.as_fd(), &Extract::default()).unwrap_err();
        let Error::Read(source) = error else { panic!("{name}: {error:?}") };
        assert_eq!(source.kind(), io::ErrorKind::ConnectionReset, "{name}");
    }
}

#[test]
fn an_output_that_fails_is_told_as_such() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 < bytes.len() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.0 -= bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let place = Place::new();
    fs::write(place.to().join("file"), vec![1; 1 << 20]).unwrap();
    for room in [0, 200_000] {
        let top = File::open(place.to()).unwrap();
        let error = archive::create(top.as_fd(), &mut Full(room), None).unwrap_err();
        assert!(matches!(error, Error::Write(_)), "{error:?}");
    }
}
