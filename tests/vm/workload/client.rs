//! Clients of the daemon: volumes, containers with first-use copies, and images.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kleene_tests::harness::{binary, patience};
use kleene_tests::image::{Archive, listing};
use serde_json::Value;

use crate::Worker;
use crate::journal::Rng;

/// Where the daemon keeps everything; also its dataset's name in the pool.
pub(crate) const ROOT: &str = "/kleene";
/// What it says.
pub(crate) const LOG: &str = "/tmp/kleened.log";
const SOCKET: &str = "/tmp/kleened.sock";

/// The file that clients write in a volume.
const DATA: &str = "data";

pub(crate) struct Daemon(Child);

impl Daemon {
    /// Answers when this returns.
    pub(crate) fn start() -> Self {
        let config = "/tmp/kleened.toml";
        fs::write(config, format!("root = {ROOT:?}\nsocket = {SOCKET:?}\nstorage = \"zfs\"\n"))
            .unwrap();
        let mut command = Command::new(binary("kleened"));
        command.args(["--config", config]).stderr(File::create(LOG).unwrap());
        let daemon = Self(command.spawn().unwrap());
        let until = Instant::now() + patience();
        while UnixStream::connect(SOCKET).is_err() {
            assert!(Instant::now() < until, "kleened does not answer");
            thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    pub(crate) fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

fn command(arguments: &str) -> Command {
    let mut command = Command::new(binary("klee"));
    command
        .args(arguments.split_whitespace())
        .env("KLEE_HOST", SOCKET)
        .env("KLEE_PROJECT", "default");
    command
}

fn klee(arguments: &str) -> String {
    let output = command(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "klee {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &str) -> Vec<Value> {
    serde_json::from_str(&klee(&format!("{arguments} -o json"))).unwrap()
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap().to_owned()
}

/// What a volume is filled with: enough that it takes a while.
fn site() -> BTreeMap<String, String> {
    let mut site = BTreeMap::from([("part".to_owned(), "/".to_owned())]);
    for n in 0..80 {
        site.insert(format!("part/{n}"), format!("{n} ").repeat(4000));
    }
    site
}

/// There is an image `base`.
pub(crate) fn import() {
    let mut archive = Archive::busybox();
    archive.owned_folder("site", 0o750, 80, 80).folder("site/part", 0o755);
    for (name, content) in site().iter().filter(|(name, _)| *name != "part") {
        archive.file(&format!("site/{name}"), content.as_bytes(), 0o644);
    }
    let mut child = command("image import - base").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&archive.bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// All that the daemon knows of, by its path below the root; snapshots too.
pub(crate) fn datasets() -> Vec<String> {
    let mut datasets = Vec::new();
    for volume in json("volume ls") {
        datasets.push(format!("volumes/{}", text(&volume, "name")));
    }
    for container in json("container ls -a") {
        datasets.push(format!("container/{}", text(&container, "id")));
    }
    for image in json("image ls") {
        let image = format!("image/{}", text(&image, "id"));
        datasets.extend([format!("{image}@image"), image]);
    }
    datasets
}

/// Nothing is there but the image `base`.
pub(crate) fn clear() {
    for container in json("container ls -a") {
        klee(&format!("container rm {}", text(&container, "id")));
    }
    for volume in json("volume ls") {
        klee(&format!("volume rm {}", text(&volume, "name")));
    }
    for image in json("image ls").iter().filter(|image| image["name"] != "base") {
        klee(&format!("image rm {}", text(image, "id")));
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Volume {
    label: Option<String>,
    filled: bool,
    data: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct State {
    volumes: BTreeMap<String, Volume>,
    /// Each with its volume.
    containers: BTreeMap<String, String>,
    images: BTreeSet<String>,
}

/// All its names begin with its own.
pub(crate) struct Client(String);

impl Client {
    pub(crate) fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    fn mine(&self, objects: Vec<Value>) -> impl Iterator<Item = (String, Value)> {
        let named = objects.into_iter().map(|object| (text(&object, "name"), object));
        named.filter(|(name, _)| name.starts_with(&self.0))
    }
}

fn place(volume: &str) -> PathBuf {
    Path::new(ROOT).join("volumes").join(volume)
}

/// What is in a volume: the first content wholly, or not at all.
fn content(volume: &str) -> Volume {
    let mut found = listing(&place(volume));
    let data = found.remove(DATA);
    // Not acknowledged.
    found.remove("data.new");
    let filled = !found.is_empty();
    if filled {
        let site = site();
        let wrong: Vec<_> =
            site.keys().filter(|name| found.get(*name) != site.get(*name)).collect();
        assert!(
            wrong.is_empty() && found.len() == site.len(),
            "{volume} is half filled: {wrong:?}"
        );
        let root = fs::metadata(place(volume)).unwrap();
        assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (80, 80, 0o750), "{volume}");
    }
    Volume { label: None, filled, data }
}

impl Worker for Client {
    type State = State;

    fn choose(&self, state: &State, rng: &mut Rng) -> String {
        let me = &self.0;
        let volumes: Vec<_> = state.volumes.keys().cloned().collect();
        let containers: Vec<_> = state.containers.keys().cloned().collect();
        let images: Vec<_> = state.images.iter().cloned().collect();
        let used = |volume: &&String| state.containers.values().any(|used| used == *volume);
        let unused: Vec<_> = volumes.iter().filter(|volume| !used(volume)).cloned().collect();
        let number = rng.below(1_000_000);
        loop {
            let many = volumes.len() + containers.len() > 12;
            let operation = match rng.below(if many { 6 } else { 12 }) {
                0 | 1 => rng.pick(&containers).map(|container| format!("container rm {container}")),
                2 | 3 => rng.pick(&unused).map(|volume| format!("volume rm {volume}")),
                4 => rng.pick(&images).map(|image| format!("image rm {image}")),
                5 => rng
                    .pick(&containers)
                    .map(|container| format!("container rename {container} {me}-n{number}")),
                6 => rng.pick(&volumes).map(|volume| format!("write {volume} {number}")),
                7 => rng
                    .pick(&containers)
                    .filter(|_| images.is_empty())
                    .map(|container| format!("image save {container} {me}-i{number}")),
                8 | 9 => Some(format!("volume create {me}-v{number} --label n={number}")),
                10 => rng.pick(&volumes).map(|volume| {
                    format!("container create --name {me}-c{number} -m {volume}:/site base")
                }),
                _ => Some(format!(
                    "container create --name {me}-c{number} -m {me}-v{number}:/site base"
                )),
            };
            if let Some(operation) = operation {
                return operation;
            }
        }
    }

    /// A volume that was there is filled before it has its container, and stays filled without it.
    fn halfway(&self, before: &State, operation: &str) -> Option<State> {
        let mut state = before.clone();
        self.apply(&mut state, operation);
        let there = state.volumes.keys().all(|name| before.volumes.contains_key(name));
        state.containers.clone_from(&before.containers);
        (operation.starts_with("container create") && there).then_some(state)
    }

    fn apply(&self, state: &mut State, operation: &str) {
        match operation.split(' ').collect::<Vec<_>>()[..] {
            ["volume", "create", name, _, label] => {
                let label = label.strip_prefix("n=").map(str::to_owned);
                state.volumes.insert(name.to_owned(), Volume { label, ..Volume::default() });
            }
            ["volume", "rm", name] => _ = state.volumes.remove(name),
            ["write", name, text] => {
                state.volumes.get_mut(name).unwrap().data = Some(text.to_owned())
            }
            ["container", "create", _, name, _, mount, _] => {
                let (volume, _) = mount.split_once(':').unwrap();
                let entry = state.volumes.entry(volume.to_owned()).or_default();
                entry.filled |= entry.data.is_none();
                state.containers.insert(name.to_owned(), volume.to_owned());
            }
            ["container", "rename", from, to] => {
                let volume = state.containers.remove(from).unwrap();
                state.containers.insert(to.to_owned(), volume);
            }
            ["container", "rm", name] => _ = state.containers.remove(name),
            ["image", "save", _, name] => _ = state.images.insert(name.to_owned()),
            ["image", "rm", name] => _ = state.images.remove(name),
            _ => panic!("{operation}?"),
        }
    }

    fn carry_out(&self, operation: &str) {
        let Some(rest) = operation.strip_prefix("write ") else {
            klee(operation);
            return;
        };
        let (volume, text) = rest.split_once(' ').unwrap();
        let (place, new) = (place(volume), place(volume).join("data.new"));
        let mut file = File::create(&new).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.sync_all().unwrap();
        fs::rename(&new, place.join(DATA)).unwrap();
        File::open(place).unwrap().sync_all().unwrap();
    }

    fn look(&self) -> State {
        let mut state = State::default();
        for (name, volume) in self.mine(json("volume ls")) {
            let label = volume["labels"]["n"].as_str().map(str::to_owned);
            let found = Volume { label, ..content(&name) };
            assert!(found.filled || volume["populated"].is_null(), "{name} has lost its content");
            state.volumes.insert(name, found);
        }
        for (name, _) in self.mine(json("container ls -a")) {
            let shown: Value =
                serde_json::from_str(&klee(&format!("container inspect {name}"))).unwrap();
            let volume = text(&shown["container_mountpoints"][0], "source");
            // The clone is whole.
            let id = text(&shown["container"], "id");
            assert_eq!(
                listing(&Path::new(ROOT).join("container").join(id).join("site")),
                site(),
                "{name}"
            );
            state.containers.insert(name, volume);
        }
        state.images = self.mine(json("image ls")).map(|(name, _)| name).collect();
        state
    }
}
