//! First-use content: a tree into an empty volume.
//!
//! The source is in the page cache (it was read just before), and nothing is synced within the
//! measured time; before each run everything earlier is. Every run writes to a new directory and
//! nothing is removed in between: ext4 looks at each recently freed inode before it takes another, and
//! whoever comes after a removal would pay for it. In the last comparison both sides also wait for the
//! disk.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use kleene_tests::mounts::{Mounted, private};
use kleened::copy::{Options, tree};
use kleened_sys::fs::{remove_tree, sync_file_system};

use crate::race::{Side, Took, race, timed_with_processor};

pub(crate) fn run() {
    // The threads that copy are started by this one, and see its mounts.
    if !private() {
        return;
    }
    let tmpfs = Mounted::tmpfs("size=8g");
    on("tmpfs", &tmpfs.path());
    drop(tmpfs);
    for kind in ["ext4", "xfs", "btrfs"] {
        if let Some(image) = Mounted::image(kind, 16 * 1024) {
            on(kind, &image.path());
        }
    }
}

fn on(kind: &str, root: &Path) {
    let small = root.join("small");
    small_files(&small);
    compare(&format!("{kind}: 5,000 small files"), &small, 9, false);
    if kind == "ext4" {
        compare(&format!("{kind}: 5,000 small files, synced"), &small, 5, true);
    }
    let large = root.join("large");
    fs::create_dir(&large).unwrap();
    let mut file = File::create(large.join("file")).unwrap();
    let noise: Vec<u8> =
        (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for _ in 0..1024 {
        file.write_all(&noise).unwrap();
    }
    compare(&format!("{kind}: one file of 1 GiB"), &large, 5, false);
}

/// 100 directories with 50 files each, of 100 bytes to 16 KiB.
fn small_files(root: &Path) {
    let mut random = 1_u64;
    for directory in 0..100 {
        let directory = root.join(format!("directory-{directory}"));
        fs::create_dir_all(&directory).unwrap();
        for file in 0..50 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let size = 100 << ((random >> 33) % 8);
            let size = size + (random >> 40) as usize % size;
            fs::write(directory.join(format!("file-{file}")), vec![b'x'; size]).unwrap();
        }
    }
}

fn compare(title: &str, source: &Path, rounds: usize, synced: bool) {
    let root = source.parent().unwrap();
    let targets = root.join("targets");
    fs::create_dir(&targets).unwrap();
    let disk = File::open(root).unwrap();
    let large = source.join("file").exists();
    // Makes a target, runs, and takes a large target away again.
    let side = |name: &str, run: &dyn Fn(&Path)| -> Took {
        let target: PathBuf = targets.join(name);
        sync_file_system(&disk).unwrap();
        let took = timed_with_processor(|| {
            run(&target);
            if synced {
                sync_file_system(&disk).unwrap();
            }
        });
        if large {
            fs::remove_dir_all(target).unwrap();
        }
        took
    };
    let program = |name: &str, options: &str| {
        let (name, options) = (name.to_owned(), options.to_owned());
        Side::new(&format!("{name} {options}"), move |round| {
            side(&format!("{name}-{round}"), &|target| {
                let source = source.join(".");
                let done = Command::new(&name).arg(&options).arg(source).arg(target).status();
                assert!(done.is_ok_and(|status| status.success()), "{name}");
            })
        })
    };
    let ours = |threads: usize| {
        move |round: usize| {
            side(&format!("kleened-{threads}-{round}"), &|target| {
                fs::create_dir(target).unwrap();
                let (from, to) = (File::open(source).unwrap(), File::open(target).unwrap());
                let options = Options { threads, ..Options::default() };
                tree(from.as_fd(), to.as_fd(), &options).unwrap();
            })
        }
    };
    let mut sides = vec![Side::new("kleened", ours(0)), Side::new("kleened, one thread", ours(1))];
    sides.push(program("cp", "-a"));
    if Command::new("rsync").arg("--version").output().is_ok_and(|o| o.status.success()) {
        sides.push(program("rsync", "-aHAX"));
    }
    race(title, rounds, sides);
    remove_tree(disk.as_fd(), "targets").unwrap();
}
