//! What another mount namespace holds: only Linux has such.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kleened::storage::Error;

use crate::fixture::{Fixture, in_memory, volume};

/// A process in another mount namespace, which has a copy of that mount.
struct Holder(Child);

impl Holder {
    fn of(mountpoint: &Path, seconds: &str) -> Self {
        // Not those of other tests.
        let script = "while read -r _ at type _; do
            [ $type = zfs ] || continue; case $1/ in $at/*) ;; *) umount -l $at ;; esac; done < /proc/mounts 2> /dev/null
            echo ready; exec sleep $2";
        let mut child = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-c", script, "-"])
            .args([mountpoint.to_str().unwrap(), seconds])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is mounted in another mount namespace is in use. One that lets go in a moment is waited for.
#[test]
fn what_another_mount_namespace_holds() {
    let Some(mut f) = Fixture::of("zfs", in_memory()) else { return };
    let path = volume("v");
    let mountpoint = f.driver.mountpoint(&path);
    for snapshots in [false, true] {
        f.make(&path);
        if snapshots {
            f.driver.snapshot(&[path.snapshot("s")], "").unwrap();
        }
        let holder = Holder::of(&mountpoint, "1000");
        let error = f.driver.destroy(&path);
        assert!(matches!(error, Err(Error::Busy(_))), "{error:?}");
        // All is as it was.
        assert_eq!(f.read(&path), path.to_string());
        assert_eq!(f.snapshots(&path).len(), usize::from(snapshots));
        // It can be renamed all the same, and lives on under the other name.
        f.driver.rename(&path, &volume("w")).unwrap();
        assert_eq!(f.read(&volume("w")), path.to_string());
        drop(holder);
        let holder = Holder::of(&f.driver.mountpoint(&volume("w")), "0.5");
        assert!(f.driver.destroy(&volume("w")).unwrap());
        drop(holder);
    }
    f.nothing_is_left_over();
}
