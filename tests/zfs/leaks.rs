//! Nothing is left in memory, nor open. Where `KLEENE_LEAK_CHECKER` names LeakSanitizer's library, it looks for every
//! byte that nothing points to; without it, memory must not grow over many turns.

use std::process::Command;

use kleene_tests::host::used;
use kleened_sys::zfs::{Limits, NvList, Receive, SendFlags};

use crate::fixture::{Area, pool, texts};
use crate::lists::{full, libnvpair};

/// Runs it in a process of its own: others' memory would be counted, too.
fn alone(test: &str, turns: u32, turn: impl Fn()) {
    const ALONE: &str = "KLEENE_ALONE";
    let checker = std::env::var("KLEENE_LEAK_CHECKER").ok();
    if std::env::var_os(ALONE).is_none() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(ALONE, "1");
        if let Some(checker) = checker {
            // Before the program's own calls it has to be started, which the first allocation does: that is the
            // C++ library's.
            command.env("LD_PRELOAD", format!("{checker} libstdc++.so.6"));
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    if checker.is_some() {
        // It sees each.
        (0..turns / 10).for_each(|_| turn());
        return;
    }
    // What is kept for the next call is allocated by then.
    (0..turns / 4 + 2).for_each(|_| turn());
    let before = used();
    (0..turns).for_each(|_| turn());
    let after = used();
    assert_eq!(after.1, before.1, "descriptors");
    let grown = after.0.saturating_sub(before.0);
    assert!(grown < 1 << 20, "{grown} bytes more after {turns} turns");
}

#[test]
fn lists_leave_nothing() {
    if !libnvpair() {
        return;
    }
    alone("leaks::lists_leave_nothing", 20_000, || {
        let list = full();
        let packed = list.pack().unwrap();
        let mut copy = NvList::unpack(&packed).unwrap().try_clone().unwrap();
        copy.put_list("again", &list).unwrap();
        copy.put_text("a", "b\0").unwrap_err();
        copy.remove("list");
        NvList::unpack(&packed[..packed.len() / 2]).unwrap_err();
        assert!(format!("{copy:?}").len() > 100);
    });
}

#[test]
fn calls_leave_nothing() {
    let Some((zfs, _)) = pool() else { return };
    alone("leaks::calls_leave_nothing", 40, || {
        let area = Area::new().unwrap();
        let one = area.with_snapshot("one");
        let a = format!("{one}@a");
        zfs.snapshot(&[&a], &texts(&[])).unwrap_err();
        zfs.bookmark(&[(&format!("{one}#a"), &a)]).unwrap();
        zfs.bookmarks(&one).unwrap();
        zfs.destroy_bookmarks(&[&format!("{one}#a")]).unwrap();
        zfs.hold(&[(&a, "t")], None).unwrap();
        zfs.destroy_snapshots(&[&a], false).unwrap_err();
        zfs.release(&[(&a, "t")]).unwrap();
        zfs.set(&one, &texts(&[("org.kleene:record", "r")])).unwrap();
        zfs.set(&one, &texts(&[("recordsize", "3")])).unwrap_err();
        zfs.inherit(&one, "org.kleene:record", false).unwrap();
        zfs.properties(&one, &[]).unwrap();
        zfs.properties(&area.at("no"), &[]).unwrap_err();
        zfs.children(&area.name).unwrap();
        zfs.describe_children(&area.name, &[]).unwrap();
        zfs.snapshots(&one).unwrap();
        let pool = area.name.split('/').next().unwrap();
        zfs.check_properties(pool, [("atime", "off")]).unwrap();
        zfs.check_properties(pool, [("atime", "no way")]).unwrap_err();
        zfs.channel_program(pool, "return {a = {1, 2}}", &texts(&[]), Limits::default(), false)
            .unwrap();
        zfs.channel_program(pool, "error('x')", &texts(&[]), Limits::default(), false).unwrap_err();
        let mount = area.mount(&one);
        zfs.diff(&a, &one, |_| ()).unwrap();
        drop(mount);
        let file = tempfile::tempfile_in(area.dir.path()).unwrap();
        use std::{io::Seek, os::fd::AsFd};
        zfs.send_with_properties(
            &a,
            None,
            SendFlags::FAST,
            &texts(&[("org.kleene:a", "b")]),
            file.as_fd(),
        )
        .unwrap();
        (&file).rewind().unwrap();
        zfs.receive(&area.at("copy@a"), &Receive::default(), file.as_fd()).unwrap();
        zfs.receive(&area.at("copy@a"), &Receive::default(), file.as_fd()).unwrap_err();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| zfs.properties(&one, &["used"]).unwrap());
            }
        });
        zfs.events().unwrap().next(false).unwrap();
    });
}
