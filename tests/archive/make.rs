//! Archives made by hand, and a place to extract them to.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use kleene_tests::manifest::Manifest;
use kleene_tests::tree::describe;
use kleened::archive::{self, Error, Extract, Summary};

pub(crate) const DEVICES: Extract<'static> = Extract { devices: true, progress: None };

pub(crate) fn create(from: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    archive::create(File::open(from).unwrap().as_fd(), &mut bytes, None).unwrap();
    bytes
}

pub(crate) fn extract_with(
    bytes: &[u8],
    to: &Path,
    options: &Extract<'_>,
) -> Result<Summary, Error> {
    fs::create_dir_all(to).unwrap();
    archive::extract(&mut &*bytes, File::open(to).unwrap().as_fd(), options)
}

pub(crate) fn extract(bytes: &[u8], to: &Path) -> Result<Summary, Error> {
    extract_with(bytes, to, &Extract::default())
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

pub(crate) type Compress = fn(&[u8]) -> Vec<u8>;

pub(crate) const COMPRESSIONS: [(&str, Compress); 4] =
    [("tar", plain), ("gz", gzip), ("xz", xz), ("zst", zstd)];

/// An archive made by hand, so that it can hold what no program would write.
#[derive(Default, Clone)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn header(kind: u8, name: &[u8], link: &[u8], size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(size);
        if matches!(kind, b'3' | b'4') {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header
    }

    pub(crate) fn raw(mut self, mut header: tar::Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn entry(self, kind: u8, name: &[u8], link: &[u8], data: &[u8]) -> Self {
        let header = Self::header(kind, name, link, data.len() as u64);
        self.raw(header, data)
    }

    pub(crate) fn file(self, name: &str, data: &str) -> Self {
        self.entry(b'0', name.as_bytes(), b"", data.as_bytes())
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(b'5', name.as_bytes(), b"", b"")
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name.as_bytes(), target.as_bytes(), b"")
    }

    pub(crate) fn hard(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name.as_bytes(), target.as_bytes(), b"")
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.records(b'x', records)
    }

    /// A global header.
    pub(crate) fn global(self, records: &[(&str, &[u8])]) -> Self {
        self.records(b'g', records)
    }

    fn records(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while rest + length.to_string().len() != length {
                length = rest + length.to_string().len();
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry(kind, b"pax", b"", &data)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub(crate) fn tar() -> Tar {
    Tar::default()
}

/// A folder with the place to extract to and, beside it, what must not be touched.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("to")).unwrap();
        fs::create_dir_all(dir.path().join("outside/dir")).unwrap();
        fs::write(dir.path().join("outside/file"), "untouched").unwrap();
        Self { dir }
    }

    pub(crate) fn to(&self) -> PathBuf {
        self.dir.path().join("to")
    }

    pub(crate) fn outside(&self) -> Manifest {
        describe(&self.dir.path().join("outside"))
    }
}
