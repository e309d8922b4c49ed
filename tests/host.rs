//! What the tests ask of the machine that they run on: its processes, and what is mounted.

use std::path::{Path, PathBuf};

use rustix::process::Pid;

#[cfg(target_os = "freebsd")]
use freebsd as system;
#[cfg(target_os = "linux")]
use linux as system;

/// The processes in whose command line all of these words are.
#[must_use]
pub fn processes(words: &[&str]) -> Vec<Pid> {
    let all = system::command_lines().into_iter();
    let found = all.filter(|(_, line)| words.iter().all(|word| line.contains(word)));
    found.filter_map(|(id, _)| Pid::from_raw(id)).collect()
}

/// Whether a process is stopped, with all its threads.
#[must_use]
pub fn is_stopped(process: Pid) -> bool {
    system::is_stopped(process)
}

/// What a process has open, by its present names.
#[must_use]
pub fn open_files(process: Pid) -> Vec<PathBuf> {
    system::open_files(process)
}

/// The memory of this process, in bytes, and how many descriptors it has.
#[must_use]
pub fn used() -> (usize, usize) {
    system::used()
}

/// What a path is for somebody who does not see what the process has mounted for itself alone.
#[must_use]
pub fn seen_by(process: Pid, path: &Path) -> PathBuf {
    system::seen_by(process, path)
}

/// What is mounted, by what and where, but for datasets and what tests mount below the folder for temporary
/// files.
#[must_use]
pub fn mounts() -> Vec<String> {
    system::mounts()
}

/// The machine's memory, in bytes.
#[must_use]
pub fn memory() -> u64 {
    system::memory()
}

/// No jail has its root below the folder any more, and nothing is mounted there but datasets. What a test has
/// mounted on Linux is gone with the daemon's namespace.
pub fn clear(folder: &Path) {
    system::clear(folder);
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::path::{Path, PathBuf};

    use rustix::process::Pid;

    pub(super) fn command_lines() -> Vec<(i32, String)> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.map(|id: i32| {
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            (id, String::from_utf8_lossy(&line).into_owned())
        })
        .collect()
    }

    pub(super) fn is_stopped(process: Pid) -> bool {
        let is_stopped = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat"));
            // A thread may have ended meanwhile. The state is what follows the name.
            stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|it| it.starts_with('T')))
        };
        let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("list threads");
        tasks.map(|task| task.expect("list threads")).all(is_stopped)
    }

    pub(super) fn open_files(process: Pid) -> Vec<PathBuf> {
        let open = fs::read_dir(format!("/proc/{process}/fd")).expect("list descriptors");
        open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
    }

    pub(super) fn used() -> (usize, usize) {
        let statm = fs::read_to_string("/proc/self/statm").expect("read statm");
        let pages: usize = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
        (pages * 4096, fs::read_dir("/proc/self/fd").expect("list descriptors").count())
    }

    pub(super) fn memory() -> u64 {
        let pages = rustix::system::sysinfo();
        pages.totalram as u64 * u64::from(pages.mem_unit)
    }

    pub(super) fn seen_by(process: Pid, path: &Path) -> PathBuf {
        let inside = PathBuf::from(format!("/proc/{process}/root"));
        inside.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(super) fn mounts() -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let others = mounts.lines().filter(|line| !line.contains(" - zfs "));
        others.map(str::to_owned).collect()
    }

    pub(super) fn clear(_folder: &Path) {}
}

/// By the base system's programs: `ps(1)`, `procstat(1)`, `mount(8)`, `jls(8)`.
#[cfg(target_os = "freebsd")]
mod freebsd {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use rustix::process::{Pid, getpid};

    fn lines(program: &str, arguments: &[&str]) -> Vec<String> {
        let output = Command::new(program).args(arguments).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    pub(super) fn command_lines() -> Vec<(i32, String)> {
        let all = lines("ps", &["-axww", "-o", "pid=", "-o", "command="]);
        let parts = all.iter().filter_map(|line| line.trim_start().split_once(' '));
        parts.filter_map(|(id, line)| Some((id.parse().ok()?, line.to_owned()))).collect()
    }

    pub(super) fn is_stopped(process: Pid) -> bool {
        let states = lines("ps", &["-o", "state=", "-p", &process.to_string()]);
        states.first().is_some_and(|state| state.starts_with('T'))
    }

    fn descriptors(process: Pid) -> Vec<String> {
        lines("procstat", &["-h", "-f", &process.to_string()])
    }

    pub(super) fn open_files(process: Pid) -> Vec<PathBuf> {
        let open = descriptors(process);
        // The name is what comes last.
        open.iter().filter_map(|line| Some(line[line.find(" /")? + 1..].into())).collect()
    }

    pub(super) fn used() -> (usize, usize) {
        let own = getpid();
        let memory = lines("ps", &["-o", "rss=", "-p", &own.to_string()]);
        let kib: usize = memory.first().and_then(|kib| kib.trim().parse().ok()).expect("a number");
        (kib << 10, descriptors(own).len())
    }

    pub(super) fn memory() -> u64 {
        let size = lines("sysctl", &["-n", "hw.physmem"]);
        size.first().and_then(|size| size.trim().parse().ok()).expect("a number")
    }

    pub(super) fn seen_by(_process: Pid, path: &Path) -> PathBuf {
        path.to_owned()
    }

    /// What, where and its type, in the order in which they were mounted. Not by `mount -p`, which puts a
    /// blank and no tab behind what is long.
    fn mounted() -> Vec<[String; 3]> {
        let parse = |line: &String| {
            let (what, rest) = line.split_once(" on ")?;
            let (at, options) = rest.rsplit_once(" (")?;
            let kind = options.split([',', ')']).next()?;
            Some([what.to_owned(), at.to_owned(), kind.to_owned()])
        };
        lines("mount", &[]).iter().filter_map(parse).collect()
    }

    fn resolved(path: &Path) -> PathBuf {
        fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
    }

    pub(super) fn mounts() -> Vec<String> {
        // Other cases run beside this one, each in a folder of its own below that of the run.
        let ours = std::env::var_os("KLEENE_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
        let ours = resolved(&ours);
        let others = mounted().into_iter();
        let others =
            others.filter(|[_, at, kind]| kind != "zfs" && !Path::new(at).starts_with(&ours));
        others.map(|mount| mount.join(" ")).collect()
    }

    pub(super) fn clear(folder: &Path) {
        let folder = resolved(folder);
        let is_below = |path: &str| Path::new(path).starts_with(&folder);
        for line in lines("jls", &["jid", "path"]) {
            if let Some((jail, path)) = line.split_once(' ')
                && is_below(path)
            {
                lines("jail", &["-r", jail]);
            }
        }
        for [_, at, kind] in mounted().iter().rev() {
            if kind != "zfs" && is_below(at) {
                lines("umount", &["-f", at]);
            }
        }
    }
}
