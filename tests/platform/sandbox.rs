//! A container to try things in.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kleene_tests::harness::binary;
use kleene_tests::{host, mounts, rootfs};
use kleened::platform::supervisor::wire::{self, Kind};
use kleened::platform::{self, Error, Launch, LogConfig, Mount, Platform, Process, Setup};
use kleened_api::Id;
use kleened_api::container::NetworkDriver;
use kleened_api::mount::MountOptions;
use kleened_api::stream::{Exit, WindowSize};
use rustix::event::{PollFd, PollFlags};
use rustix::process::Pid;
#[cfg(target_os = "linux")]
use rustix::process::PidfdFlags;

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A platform with one container, which is gone when this is dropped.
pub(crate) struct Sandbox {
    pub(crate) platform: Box<dyn Platform>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) container: Id,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) network: NetworkDriver,
    pub(crate) log_size: u64,
}

impl Sandbox {
    /// A container with a busybox; `None` where this machine can't have one.
    pub(crate) fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            mounts::skip("mount", "run the tests as root");
            return None;
        }
        if !rootfs::can() {
            mounts::skip("busybox", "install busybox-static");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("host")).unwrap();
        rootfs::make(&dir.path().join("root"));
        Some(Self {
            platform: open(&dir.path().join("run")),
            dir,
            container: id(),
            mounts: Vec::new(),
            network: NetworkDriver::Disabled,
            log_size: 1 << 20,
        })
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A path outside of the container.
    pub(crate) fn host(&self, name: &str) -> PathBuf {
        self.dir.path().join("host").join(name)
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A directory of the host's, mounted.
    pub(crate) fn mount(&mut self, source: &Path, destination: &str) -> &mut Mount {
        self.mounts.push(Mount {
            source: source.to_owned(),
            subpath: None,
            destination: destination.to_owned(),
            read_only: false,
            options: MountOptions::default(),
        });
        self.mounts.last_mut().unwrap()
    }

    /// What starts the container with this command.
    pub(crate) fn first(&self, argv: &[&str]) -> Launch {
        let setup = Setup {
            root: self.root(),
            hostname: "sandbox".to_owned(),
            network: self.network,
            jail_param: Vec::new(),
            limits: Vec::new(),
            mounts: self.mounts.clone(),
            log: LogConfig { path: self.log(), max_size: self.log_size, max_files: 3 },
        };
        Launch { setup: Some(setup), ..self.joined(argv) }
    }

    /// What runs this command in the running container.
    pub(crate) fn joined(&self, argv: &[&str]) -> Launch {
        let process = Process {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            env: Vec::new(),
            user: String::new(),
            workdir: "/".to_owned(),
            tty: false,
            stdin: false,
        };
        let (instance, container) = (id(), self.container.clone());
        Launch { instance, container, setup: None, process, attach: true }
    }

    /// Starts it, and attaches to it.
    pub(crate) fn attach(&self, launch: &Launch) -> Result<Client, Error> {
        self.platform.launch(launch)?;
        Ok(self.connect(&launch.instance, true))
    }

    pub(crate) fn connect(&self, instance: &Id, attach: bool) -> Client {
        let stream = self.platform.connect(instance).unwrap().expect("a supervisor");
        Client::new(stream, attach)
    }

    /// Runs a command as the container's only process, and releases the container.
    pub(crate) fn run(&self, argv: &[&str]) -> Result<Outcome, Error> {
        self.run_launch(&self.first(argv))
    }

    /// Runs lines of shell.
    pub(crate) fn shell(&self, script: &str) -> Outcome {
        self.run(&["sh", "-c", script]).unwrap()
    }

    pub(crate) fn run_launch(&self, launch: &Launch) -> Result<Outcome, Error> {
        let outcome = self.attach(launch)?.finish();
        self.platform.release(&self.container, &self.root())?;
        Ok(outcome)
    }

    /// Starts a shell that runs these lines and then waits for its input to end; it does when the client
    /// is dropped. Returns when the lines are done.
    pub(crate) fn start(&self, script: &str) -> (Client, Id) {
        let mut launch = self.first(&["sh", "-c", &format!("{script}\necho ready; exec cat")]);
        launch.process.stdin = true;
        let mut client = self.attach(&launch).unwrap();
        client.wait_for("ready\n");
        (client, launch.instance)
    }

    /// The supervisor of the running container.
    pub(crate) fn supervisor(&self) -> Pid {
        self.supervisor_of(&self.platform.running().unwrap()[0].instance)
    }

    /// The supervisor of an instance, which is nobody's child.
    pub(crate) fn supervisor_of(&self, instance: &Id) -> Pid {
        let all = host::processes(&["supervise", instance.as_str()]);
        // What it forked is its child. It is that of whoever adopts orphans, which need not be init.
        let is_child = |pid: &Pid| parent(*pid).is_some_and(|parent| all.contains(&parent));
        all.iter().copied().find(|pid| !is_child(pid)).expect("a supervisor")
    }

    /// Runs lines of shell in the running container.
    pub(crate) fn exec(&self, script: &str) -> Outcome {
        self.attach(&self.joined(&["sh", "-c", script])).unwrap().finish()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let killed = self.platform.kill(&self.container);
        let released = self.platform.release(&self.container, &self.root());
        if !std::thread::panicking() {
            killed.unwrap();
            released.unwrap();
        }
    }
}

/// The platform with the real daemon's program as its supervisor.
pub(crate) fn open(run_dir: &Path) -> Box<dyn Platform> {
    platform::open_with(run_dir, Some(&binary("kleened"))).unwrap()
}

/// An id that nobody has.
pub(crate) fn id() -> Id {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("c{:05x}{count:06x}", std::process::id() & 0xf_ffff).parse().unwrap()
}

/// The parent of a process.
fn parent(pid: Pid) -> Option<Pid> {
    let said = Command::new("ps").args(["-o", "ppid=", "-p", &pid.to_string()]).output().unwrap();
    Pid::from_raw(String::from_utf8_lossy(&said.stdout).trim().parse().ok()?)
}

/// Returns when the process is gone.
#[cfg(target_os = "linux")]
pub(crate) fn wait_for(pid: Pid) {
    if let Ok(file) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        rustix::event::poll(&mut [PollFd::new(&file, PollFlags::IN)], None).unwrap();
    }
}

/// Returns when the process is gone.
#[cfg(target_os = "freebsd")]
pub(crate) fn wait_for(pid: Pid) {
    let watch = kleened_sys::watch::Watch::new().unwrap();
    if watch.exit_of(pid).unwrap() {
        rustix::event::poll(&mut [PollFd::new(&watch, PollFlags::IN)], None).unwrap();
    }
}

/// Returns when no process of a container is left that the platform called by this number.
#[cfg(target_os = "linux")]
pub(crate) fn wait_for_container(jid: i32) {
    wait_for(Pid::from_raw(jid).unwrap());
}

/// Returns when no process of a container is left that the platform called by this number.
#[cfg(target_os = "freebsd")]
pub(crate) fn wait_for_container(jid: i32) {
    while let Some(pid) = kleened_sys::process::of_jail(jid).unwrap().first() {
        wait_for(*pid);
    }
}

/// Whether no process of a container is left that the platform called by this number.
pub(crate) fn is_gone(jid: i32) -> bool {
    #[cfg(target_os = "linux")]
    return !Path::new(&format!("/proc/{jid}")).exists();
    #[cfg(target_os = "freebsd")]
    return kleened_sys::process::of_jail(jid).unwrap().is_empty();
}

/// What is mounted, as far as it could be a sandbox's: others come and go.
pub(crate) fn mounted(below: &Path) -> Vec<String> {
    let below = fs::canonicalize(below).unwrap();
    #[cfg(target_os = "linux")]
    {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let below = below.to_str().unwrap();
        table.lines().filter(|line| line.contains(below)).map(str::to_owned).collect()
    }
    #[cfg(target_os = "freebsd")]
    {
        let table = kleened_sys::nmount::table().unwrap();
        let own = table.iter().filter(|entry| entry.at.starts_with(&below));
        own.map(|entry| format!("{entry:?}")).collect()
    }
}

/// What a process did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// Somebody who is connected to a supervisor.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) output: Vec<u8>,
    pub(crate) errors: Vec<u8>,
    pub(crate) exit: Option<Exit>,
    pub(crate) ended: bool,
}

impl Client {
    fn new(mut stream: UnixStream, attach: bool) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        wire::greet(&mut stream, attach).unwrap();
        Self { stream, output: Vec::new(), errors: Vec::new(), exit: None, ended: false }
    }

    pub(crate) fn send(&mut self, kind: Kind, payload: &[u8]) {
        wire::write(&mut self.stream, kind, payload).unwrap();
    }

    pub(crate) fn input(&mut self, text: &str) {
        self.send(Kind::STDIN, text.as_bytes());
    }

    pub(crate) fn resize(&mut self, rows: u16, cols: u16) {
        let size = WindowSize { rows, cols };
        self.send(Kind::RESIZE, &serde_json::to_vec(&size).unwrap());
    }

    /// Takes one frame; false at the end.
    pub(crate) fn take(&mut self) -> bool {
        let Some((kind, payload)) = wire::read(&mut self.stream).unwrap() else { return false };
        match kind {
            Kind::STDOUT => {
                assert!(self.exit.is_none(), "output after the exit");
                self.output.extend(payload);
            }
            Kind::STDERR => {
                assert!(self.exit.is_none(), "output after the exit");
                self.errors.extend(payload);
            }
            Kind::EXIT => {
                assert!(self.exit.is_none(), "two exits");
                self.exit = Some(serde_json::from_slice(&payload).unwrap());
            }
            Kind::Ended => self.ended = true,
            other => panic!("a frame {other:?}"),
        }
        true
    }

    /// Returns when the output holds this text, which is taken out with all that came before it.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        loop {
            let so_far = String::from_utf8_lossy(&self.output).into_owned();
            if let Some((before, after)) = so_far.split_once(text) {
                self.output = after.into();
                return before.to_owned();
            }
            let went_on = self.take();
            let errors = String::from_utf8_lossy(&self.errors);
            assert!(went_on, "the end, and no {text:?} in {so_far:?} {errors:?} {:?}", self.exit);
        }
    }

    pub(crate) fn wait_for_exit(&mut self) -> Exit {
        while self.exit.is_none() {
            assert!(self.take(), "the end, and no exit");
        }
        self.exit.unwrap()
    }

    /// Returns when the container has ended.
    pub(crate) fn wait_for_end(&mut self) {
        while !self.ended {
            assert!(self.take(), "the connection was closed before the container ended");
        }
    }

    /// Everything until the supervisor closes the connection.
    pub(crate) fn finish(mut self) -> Outcome {
        while self.take() {}
        let exit = self.exit.expect("an exit");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Outcome { code: exit.code, output: text(&self.output), errors: text(&self.errors) }
    }

    /// Ends the process's input, and takes everything that comes then.
    pub(crate) fn end(mut self) -> Outcome {
        self.send(Kind::STDIN, b"");
        self.finish()
    }

    /// Returns when the supervisor has closed the connection; what comes until then is thrown away.
    pub(crate) fn drain(mut self) {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).unwrap();
    }
}
