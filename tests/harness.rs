//! The real binaries: a daemon in a folder and a mount namespace of its own, and its client.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::host;
use crate::image;
use crate::pool::Root;

/// How long anything that a test waits for may take before the test fails: a minute, times
/// `KLEENE_PATIENCE`, for machines that are slow.
#[must_use]
pub fn patience() -> Duration {
    let factor = std::env::var("KLEENE_PATIENCE").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(60) * factor.unwrap_or(1)
}

/// A binary of this workspace, built before: in the folder that `KLEENE_BIN` names, or in one that the test is in.
///
/// # Panics
///
/// When it was not built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("KLEENE_BIN") {
        return Path::new(&folder).join(name);
    }
    let test = std::env::current_exe().expect("a test knows where it is");
    let found = test.ancestors().map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not built: run 'cargo build --workspace' first"))
}

/// A daemon that runs until this is dropped. Nothing of it is left then.
#[derive(Debug)]
pub struct Daemon {
    // Destroyed before the folder that it is mounted in is removed.
    room: Option<Root>,
    home: Option<TempDir>,
    child: Option<Child>,
    settings: String,
    prelude: String,
    environment: Vec<(String, String)>,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How it ended.
    pub code: i32,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }
}

impl Ran {
    /// Standard output without the last newline, of a command that succeeded.
    ///
    /// # Panics
    ///
    /// When it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout.trim_end_matches('\n').to_owned()
    }

    /// Standard error, of a command that failed with that status.
    ///
    /// # Panics
    ///
    /// When it ended in another way.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        self.stderr
    }
}

impl Daemon {
    /// A daemon with the default configuration, with an image `base` as [`image::busybox`] makes it.
    #[must_use]
    pub fn with_image() -> Self {
        let daemon = Self::start();
        daemon.import(&image::busybox());
        daemon
    }

    /// A daemon with the default configuration.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with("", &[])
    }

    /// A daemon with these lines in its configuration and these variables in its environment.
    #[must_use]
    pub fn start_with(settings: &str, environment: &[(&str, &str)]) -> Self {
        let mut daemon = Self::prepare(settings, environment);
        daemon.boot();
        daemon
    }

    /// A daemon whose root is in memory, where no copy is only a reference; `None` on a pool, and where there
    /// is too little of it.
    #[must_use]
    pub fn start_in_memory() -> Option<Self> {
        let mut daemon = Self::prepare("", &[]);
        if daemon.room.is_some() || !has("memory", host::memory() > 6 << 30) {
            return None;
        }
        daemon.prelude = daemon.mount_memory(4096);
        daemon.boot();
        Some(daemon)
    }

    /// A daemon that can't store more than that.
    #[must_use]
    pub fn start_within(mib: u64) -> Self {
        let mut daemon = Self::prepare("", &[]);
        match &daemon.room {
            Some(room) => room.limit(mib),
            None if cfg!(target_os = "linux") => {
                daemon.prelude = format!(
                    "cd {}; mkdir -p root; test -e disk || {{ truncate -s {mib}M disk; mke2fs -qF disk; }}; \
                     mount -o loop disk root",
                    daemon.home().display()
                );
            }
            None => daemon.prelude = daemon.mount_memory(mib),
        }
        daemon.boot();
        daemon
    }

    /// On a pool it can't store more than that beside what it has. Nothing, where there is none.
    pub fn leave(&self, mib: u64) {
        if let Some(room) = &self.room {
            room.limit(room.used() + mib);
        }
    }

    fn prepare(settings: &str, environment: &[(&str, &str)]) -> Self {
        // As the kernel's tables have it.
        let folder = fs::canonicalize(std::env::temp_dir()).expect("a folder for temporary files");
        let home = tempfile::Builder::new().prefix("kl").tempdir_in(folder);
        let home = home.expect("a folder of its own");
        let environment =
            environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let (settings, prelude) = (settings.to_owned(), String::new());
        let room = Root::at(&home.path().join("root"));
        Self { room, home: Some(home), child: None, settings, prelude, environment }
    }

    /// A script after which the root is in memory. Where all see what is mounted, it is still there when the
    /// daemon starts again.
    fn mount_memory(&self, mib: u64) -> String {
        let home = self.home().display();
        let mounted = match cfg!(target_os = "linux") {
            true => "false".to_owned(),
            false => format!("mount -p | grep -q \"{home}/root[[:blank:]]\""),
        };
        format!(
            "cd {home}; mkdir -p root; {mounted} || mount -t tmpfs -o size={mib}m tmpfs {home}/root"
        )
    }

    /// Its folder.
    ///
    /// # Panics
    ///
    /// Never: the folder goes with the daemon.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.as_ref().expect("it is there until the end").path()
    }

    /// The directory under which it keeps everything.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.home().join("root")
    }

    /// The storage driver that it has.
    #[must_use]
    pub fn driver(&self) -> &'static str {
        if self.room.is_some() { "zfs" } else { "dir" }
    }

    /// The name of the dataset with that path below the root.
    #[must_use]
    pub fn dataset(&self, path: &str) -> String {
        match &self.room {
            Some(room) => format!("{}/{path}", room.name()),
            None => self.root().join(path).display().to_string().trim_start_matches('/').to_owned(),
        }
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.home().join("sock")
    }

    /// Starts the daemon again, with the environment that it had and no other.
    ///
    /// # Panics
    ///
    /// When it does not answer in time.
    pub fn boot(&mut self) {
        assert!(self.try_boot(), "kleened ended\n{}", self.log());
    }

    /// Starts the daemon; whether it answers. Where not, it has ended.
    ///
    /// # Panics
    ///
    /// When it neither answers nor ends in time.
    pub fn try_boot(&mut self) -> bool {
        self.spawn();
        let until = Instant::now() + patience();
        while UnixStream::connect(self.socket()).is_err() {
            if self
                .child
                .as_mut()
                .is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_some()))
            {
                self.child = None;
                return false;
            }
            assert!(Instant::now() < until, "kleened does not answer\n{}", self.log());
            thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Whether it was started, and its end was not seen.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Starts the daemon and does not wait for it.
    ///
    /// # Panics
    ///
    /// When it can't be started.
    pub fn spawn(&mut self) {
        let config = self.home().join("kleened.toml");
        let text = format!(
            "root = {:?}\nsocket = {:?}\nstorage = {:?}\nstop_timeout = 2\n{}\n",
            self.root(),
            self.socket(),
            self.driver(),
            self.settings
        );
        fs::write(&config, text).expect("write the configuration");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.home().join("log"));
        let mut command = Command::new("env");
        if self.room.is_none() && cfg!(target_os = "linux") {
            // What is mounted here is gone with the last process, and seen nowhere else. Datasets
            // are mounted for all to see.
            command.args(["unshare", "--mount", "--propagation", "private", "--"]);
        }
        let script = format!("{}\nexec \"$@\"", self.prelude);
        command
            .args(["sh", "-ec", &script, "sh"])
            .arg(binary("kleened"))
            .arg("--config")
            .arg(&config)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("open the log"));
        self.child = Some(command.spawn().expect("start kleened"));
    }

    /// The process id.
    ///
    /// # Panics
    ///
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> rustix::process::Pid {
        let child = self.child.as_ref().expect("it runs");
        rustix::process::Pid::from_child(child)
    }

    /// Kills it without a warning.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn kill(&mut self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::KILL)
            .expect("kill kleened");
        self.ended();
    }

    /// Kills it and every process of its containers without a warning, as a power failure would.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn power_off(&mut self) {
        self.kill();
        // A container dies with its supervisor.
        for pid in supervisors(self.home()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        eventually("the supervisors' end", || supervisors(self.home()).is_empty());
        host::clear(self.home());
    }

    /// Waits until it has stopped itself, as a plan in `KLEENED_FAULT` told it to.
    ///
    /// # Panics
    ///
    /// When it does not run, or does not stop in time.
    pub fn wait_until_stopped(&self) {
        eventually("kleened's stop", || self.is_stopped());
    }

    fn is_stopped(&self) -> bool {
        host::is_stopped(self.pid())
    }

    /// Lets it go on where it has stopped itself.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn go_on(&self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::CONT)
            .expect("continue kleened");
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Panics
    ///
    /// When it does not run, or does not end in time.
    pub fn stop(&mut self) -> ExitStatus {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::TERM)
            .expect("stop kleened");
        self.ended()
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    ///
    /// When it does not run, or does not end in time.
    pub fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let until = Instant::now() + patience();
        loop {
            if let Some(status) = child.try_wait().expect("wait for kleened") {
                return status;
            }
            if Instant::now() > until {
                let _ = child.kill();
                panic!("kleened does not end\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sets or removes a variable of the environment for the next start.
    pub fn set_environment(&mut self, name: &str, value: Option<&str>) {
        self.environment.retain(|(other, _)| other != name);
        self.environment.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    /// What it said so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.home().join("log")).unwrap_or_default()
    }

    /// The client, to be run with more arguments.
    #[must_use]
    pub fn client(&self) -> Command {
        let mut command = Command::new(binary("klee"));
        command
            .env("KLEE_HOST", self.socket())
            .env("KLEE_PROJECT", "default")
            .env_remove("KLEE_THEME")
            .stdin(Stdio::null());
        command
    }

    /// Runs the client.
    ///
    /// # Panics
    ///
    /// When it can't be started.
    #[track_caller]
    pub fn klee<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ran {
        self.client().args(arguments).output().expect("run klee").into()
    }

    /// Runs the client with that text, split at blanks.
    #[track_caller]
    pub fn run(&self, arguments: &str) -> Ran {
        self.klee(arguments.split_whitespace())
    }

    /// Runs the client with those bytes for its input.
    ///
    /// # Panics
    ///
    /// When it can't be started.
    #[track_caller]
    pub fn klee_with<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        input: &[u8],
    ) -> Output {
        let mut command = self.client();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("run klee");
        let mut stdin = child.stdin.take().expect("it is piped");
        thread::scope(|scope| {
            // It may end before it has read everything.
            scope.spawn(move || _ = stdin.write_all(input));
            child.wait_with_output().expect("run klee")
        })
    }

    /// What inspect says.
    ///
    /// # Panics
    ///
    /// When there is no such object.
    #[track_caller]
    pub fn inspect(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.klee([kind, "inspect", name]).ok()).expect("inspect prints JSON")
    }

    /// Imports a tar archive as `base`.
    #[track_caller]
    pub fn import(&self, archive: &[u8]) {
        let ran: Ran = self.klee_with(["image", "import", "-", "base"], archive).into();
        ran.ok();
    }

    /// Sends a raw request, as no client of ours would, and returns the whole answer.
    ///
    /// # Panics
    ///
    /// When the daemon does not answer.
    #[must_use]
    pub fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).expect("connect");
        stream.set_read_timeout(Some(patience())).expect("set a limit");
        stream.write_all(request.as_bytes()).expect("send");
        let mut answer = Vec::new();
        // A connection that is kept open ends the answer as well as one that is closed.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The directory of a volume, as the host sees it.
    #[must_use]
    pub fn volume(&self, name: &str) -> PathBuf {
        self.root().join("volumes").join(name)
    }

    /// The directory of a volume, as the daemon sees it, with what is mounted in its namespace.
    #[must_use]
    pub fn volume_inside(&self, name: &str) -> PathBuf {
        if self.room.is_some() {
            return self.volume(name);
        }
        // A link in the daemon's namespace leads to a place in it.
        let link = host::seen_by(self.pid(), &self.volume(name));
        let target = fs::read_link(&link).unwrap_or_default();
        link.parent().unwrap_or(Path::new("/")).join(target)
    }

    /// What is below the root that a restart would clear away, and mounts and processes that
    /// outlived their container.
    #[must_use]
    pub fn litter(&self) -> Vec<String> {
        let mut litter = Vec::new();
        for folder in ["scratch", "journal", ".kleene/new", ".kleene/dead"] {
            for entry in fs::read_dir(self.root().join(folder)).into_iter().flatten().flatten() {
                litter.push(format!("{folder}/{}", entry.file_name().to_string_lossy()));
            }
        }
        if let Some(room) = &self.room {
            litter.extend(room.below().into_iter().filter(|name| name.starts_with("scratch/")));
        }
        litter
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.runs() && self.is_stopped() {
            self.kill();
        }
        if self.child.is_none() && self.socket().exists() {
            // It was killed: what it left is found by one that stops it.
            self.environment.clear();
            self.spawn();
            let until = Instant::now() + patience();
            while UnixStream::connect(self.socket()).is_err() && Instant::now() < until {
                thread::sleep(Duration::from_millis(2));
            }
        }
        if let Some(mut child) = self.child.take() {
            let pid = rustix::process::Pid::from_child(&child);
            let running = self.klee(["container", "ls", "-q"]).stdout;
            for id in running.lines() {
                self.klee(["container", "stop", "--time", "0", id]);
            }
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = child.wait();
        }
        for pid in supervisors(self.home()) {
            // Its container dies with it.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        // Or what is mounted there would be removed with the folder.
        host::clear(self.home());
        if thread::panicking() {
            eprintln!("--- kleened said ---\n{}", self.log());
        }
    }
}

/// The supervisors that watch over something below a directory.
fn supervisors(home: &Path) -> Vec<rustix::process::Pid> {
    host::processes(&["supervise", &home.to_string_lossy()])
}

/// Asks again and again until it is true.
///
/// # Panics
///
/// When it is not true in time.
#[track_caller]
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let until = Instant::now() + patience();
    while !check() {
        assert!(Instant::now() < until, "{what} did not happen");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a test that needs `what` can run; where it can't, that is printed, and is a failure where
/// `KLEENE_REQUIRE` names it.
///
/// # Panics
///
/// When it is required and not there.
#[must_use]
pub fn has(what: &str, there: bool) -> bool {
    if !there {
        let required = std::env::var("KLEENE_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == what), "{what} is required and not there");
        eprintln!("SKIPPED: needs {what}");
    }
    there
}
