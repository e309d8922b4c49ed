//! What only jails have: parameters, commands at their beginning and end, rules for devices.

use std::fs;
use std::process::Command;
use std::time::Duration;

use kleened::platform::supervisor::wire::Kind;
use kleened::platform::{Error, Launch};
use kleened_api::container::NetworkDriver;

use crate::sandbox::{Sandbox, mounted};

const PATIENCE: Duration = Duration::from_secs(10);

/// A first process with jail parameters.
fn with(sandbox: &Sandbox, argv: &[&str], parameters: &[&str]) -> Launch {
    let mut launch = sandbox.first(argv);
    let setup = launch.setup.as_mut().unwrap();
    setup.jail_param = parameters.iter().map(|&text| text.to_owned()).collect();
    launch
}

/// Parameters of the running jail, by jls(8).
fn parameters(sandbox: &Sandbox, names: &[&str]) -> String {
    let jls = Command::new("jls").args(["-j", sandbox.container.as_str()]).args(names).output();
    let jls = jls.unwrap();
    assert!(jls.status.success(), "{}", String::from_utf8_lossy(&jls.stderr));
    String::from_utf8(jls.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_defaults_are_safe() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (client, _) = sandbox.start("");
    let names = ["enforce_statfs", "devfs_ruleset", "children.max", "allow.raw_sockets", "persist"];
    assert_eq!(parameters(&sandbox, &names), "2 4 0 false false");
    assert_eq!(parameters(&sandbox, &["host.hostname"]), "sandbox");
    assert_eq!(sandbox.exec("hostname").output, "sandbox\n");
    let devices = sandbox.exec("ls /dev").output;
    for needed in ["fd", "null", "random", "stdin", "zero"] {
        assert!(devices.lines().any(|name| name == needed), "{needed} is not in {devices}");
    }
    for secret in ["geom.ctl", "kmem", "mem", "pci"] {
        assert!(!devices.lines().any(|name| name == secret), "{secret} is in /dev");
    }
    for command in ["mount -t tmpfs tmpfs /tmp", "hostname other && false", "sysctl kern.maxproc=1"]
    {
        assert_ne!(sandbox.exec(command).code, 0, "{command}");
    }
    drop(client);
}

#[test]
fn networks() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    for (network, answer) in
        [(NetworkDriver::Host, "inherit inherit"), (NetworkDriver::Disabled, "new new")]
    {
        sandbox.network = network;
        let (client, _) = sandbox.start("");
        let said = parameters(&sandbox, &["ip4", "ip6"]);
        let said = said.replace("disable", "new");
        assert_eq!(said, answer, "{network:?}");
        client.end();
        sandbox.platform.release(&sandbox.container, &sandbox.root()).unwrap();
    }
}

#[test]
fn parameters_are_the_kernels() {
    let Some(sandbox) = Sandbox::new() else { return };
    let given = [
        "children.max=3",
        "allow.raw_sockets",
        "allow.noset_hostname",
        "host.hostname=web",
        "enforce_statfs=1",
    ];
    let mut launch = with(&sandbox, &["cat"], &given);
    launch.process.stdin = true;
    let client = sandbox.attach(&launch).unwrap();
    let names = [
        "children.max",
        "allow.raw_sockets",
        "allow.set_hostname",
        "host.hostname",
        "enforce_statfs",
    ];
    assert_eq!(parameters(&sandbox, &names), "3 true false web 1");
    // What runs can be given others.
    let update = |text: &str| sandbox.platform.update(&sandbox.container, &[text.to_owned()]);
    update("allow.noraw_sockets").unwrap();
    update("host.hostname=other").unwrap();
    assert_eq!(parameters(&sandbox, &["allow.raw_sockets", "host.hostname"]), "false other");
    assert!(matches!(update("no.such"), Err(Error::Invalid(_))));
    let error = update("osrelease=1").unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("cannot be changed"), "{error}: {cause}");
    client.end();
    assert!(matches!(update("children.max=1"), Err(Error::NotRunning(_))));
}

#[test]
fn what_is_wrong_is_refused_before_anything_is_made() {
    let Some(sandbox) = Sandbox::new() else { return };
    for (text, words) in [
        ("allow.rawsockets", "did you mean 'allow.raw_sockets'"),
        ("children.max=many", "takes a number"),
        ("children.cur=1", "can't be set"),
        ("path=/", "not for containers"),
        ("exec.start=x", "not for containers"),
        ("ip4=maybe", "'new', 'inherit' or 'disable'"),
        ("", "no jail parameter"),
    ] {
        let error = sandbox.platform.check(NetworkDriver::Host, &[text.to_owned()]).unwrap_err();
        assert!(matches!(&error, Error::Invalid(said) if said.contains(words)), "{text}: {error}");
        let error = sandbox.run_launch(&with(&sandbox, &["true"], &[text])).unwrap_err();
        assert!(error.to_string().contains(words), "{text}: {error}");
        assert_eq!(mounted(&sandbox.root()), [""; 0]);
    }
    for network in [NetworkDriver::Ipnet, NetworkDriver::Vnet] {
        assert!(matches!(sandbox.platform.check(network, &[]), Err(Error::Unsupported(_))));
    }
    // In the kernel's words.
    let error = sandbox.run_launch(&with(&sandbox, &["true"], &["securelevel=-5"])).unwrap_err();
    assert!(error.to_string().contains("jail"), "{error}");
    assert_eq!(mounted(&sandbox.root()), [""; 0]);
}

#[test]
fn a_jail_that_persists_stays_without_a_process() {
    let Some(sandbox) = Sandbox::new() else { return };
    let mut client = sandbox.attach(&with(&sandbox, &["true"], &["persist"])).unwrap();
    assert!(!client.wait_for_exit().container_ended);
    assert_eq!(sandbox.platform.running().unwrap().len(), 1);
    assert_eq!(sandbox.exec("echo inside").output, "inside\n");
    assert!(sandbox.platform.kill(&sandbox.container).unwrap());
    client.wait_for_end();
    assert_eq!(sandbox.platform.running().unwrap(), []);
    assert_eq!(mounted(&sandbox.root()), [""; 0]);
}

#[test]
fn commands_at_the_beginning_and_the_end() {
    let Some(sandbox) = Sandbox::new() else { return };
    let file = sandbox.host("steps");
    let step = |name: &str| format!("exec.{name}=echo {name} >> {}", file.display());
    let hooks = ["prestart", "created", "poststart", "prestop", "poststop", "release"].map(step);
    let mut given: Vec<&str> = hooks.iter().map(String::as_str).collect();
    given.push("exec.stop=echo inside > /tmp/stop; kill -TERM $(cat /tmp/pid)");
    let script = "echo $$ > /tmp/pid; trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done";
    let mut client = sandbox.attach(&with(&sandbox, &["sh", "-c", script], &given)).unwrap();
    client.wait_for("up\n");
    assert!(sandbox.platform.terminate(&sandbox.container, PATIENCE).unwrap());
    assert_eq!(client.wait_for_exit().code, 5);
    client.wait_for_end();
    let steps = fs::read_to_string(&file).unwrap();
    assert_eq!(steps, "prestart\ncreated\npoststart\nprestop\npoststop\nrelease\n");
    assert_eq!(fs::read_to_string(sandbox.root().join("tmp/stop")).unwrap(), "inside\n");
    sandbox.platform.release(&sandbox.container, &sandbox.root()).unwrap();
    // One that fails fails the start.
    let error =
        sandbox.run_launch(&with(&sandbox, &["true"], &["exec.prestart=exit 3"])).unwrap_err();
    assert!(error.to_string().contains("exit 3"), "{error}");
    assert_eq!(mounted(&sandbox.root()), [""; 0]);
}

#[test]
fn commands_of_the_host_know_the_jail() {
    let Some(sandbox) = Sandbox::new() else { return };
    let file = sandbox.host("known");
    let say = format!("exec.created=echo $JID $JNAME $JPATH > {}", file.display());
    // What is mounted is there before the jail is.
    let look = "exec.prestart=test -c \"$JPATH/dev/null\" && test -z \"$JID\"";
    let mut launch = with(&sandbox, &["cat"], &[&say, look]);
    launch.process.stdin = true;
    let client = sandbox.attach(&launch).unwrap();
    let jid = sandbox.platform.running().unwrap()[0].jid;
    let known = format!("{jid} {} {}\n", sandbox.container, sandbox.root().display());
    assert_eq!(fs::read_to_string(file).unwrap(), known);
    client.end();
}

/// What a command of the host's says.
fn host(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

#[test]
fn an_interface_has_the_address_as_long_as_the_jail_is_there() {
    let Some(sandbox) = Sandbox::new() else { return };
    let has = || host("/sbin/ifconfig", &["lo0", "inet"]).contains("127.75.1.2 ");
    assert!(!has());
    for given in [&["ip4.addr=lo0|127.75.1.2/32"][..], &["interface=lo0", "ip4.addr=127.75.1.2"]] {
        let mut launch = with(&sandbox, &["cat"], given);
        launch.process.stdin = true;
        let mut client = sandbox.attach(&launch).unwrap();
        assert!(has(), "{given:?}");
        assert_eq!(parameters(&sandbox, &["ip4.addr"]), "127.75.1.2");
        client.send(Kind::STDIN, b"");
        client.wait_for_end();
        sandbox.platform.release(&sandbox.container, &sandbox.root()).unwrap();
        assert!(!has(), "{given:?}");
    }
    // It is taken away also where the jail can't be made.
    let given = ["ip4.addr=lo0|127.75.1.2/32", "exec.prestart=exit 3"];
    sandbox.run_launch(&with(&sandbox, &["true"], &given)).unwrap_err();
    assert!(!has());
    let error = sandbox.run_launch(&with(&sandbox, &["true"], &["ip4.addr=nosuch0|127.75.1.2"]));
    assert!(error.unwrap_err().to_string().contains("nosuch0"));
}

#[test]
fn an_interface_is_the_jails() {
    let Some(sandbox) = Sandbox::new() else { return };
    let made = Command::new("/sbin/ifconfig").args(["epair", "create"]).output().unwrap();
    if !made.status.success() || host("sysctl", &["-n", "kern.features.vimage"]) != "1" {
        let why = String::from_utf8_lossy(&made.stderr).into_owned();
        kleene_tests::mounts::skip("vnet", why);
        return;
    }
    let near = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let given = format!("vnet.interface={near}");
    let mut launch = with(&sandbox, &["cat"], &["vnet", &given]);
    launch.process.stdin = true;
    let mut client = sandbox.attach(&launch).unwrap();
    let is_here = || host("/sbin/ifconfig", &["-l"]).split(' ').any(|name| name == near);
    let gone = !is_here();
    let inside = sandbox.exec("ifconfig -l").output;
    client.send(Kind::STDIN, b"");
    client.wait_for_end();
    // The kernel gives it back when nothing of the jail is left.
    kleene_tests::harness::eventually("the interface comes back", is_here);
    host("/sbin/ifconfig", &[&near, "destroy"]);
    assert!(gone && inside.split_whitespace().any(|name| name == near), "{gone} {inside}");
}

#[test]
fn a_routing_table() {
    let Some(sandbox) = Sandbox::new() else { return };
    let number: i32 = host("sysctl", &["-n", "net.fibs"]).parse().unwrap();
    let last = format!("exec.fib={}", number - 1);
    let mut launch = with(&sandbox, &["sh", "-c", "sysctl -n net.my_fibnum; cat"], &[&last]);
    launch.process.stdin = true;
    let mut client = sandbox.attach(&launch).unwrap();
    client.wait_for(&format!("{}\n", number - 1));
    assert_eq!(sandbox.exec("sysctl -n net.my_fibnum").output, format!("{}\n", number - 1));
    client.send(Kind::STDIN, b"");
    client.wait_for_end();
    sandbox.platform.release(&sandbox.container, &sandbox.root()).unwrap();
    let none = format!("exec.fib={number}");
    let error = sandbox.run_launch(&with(&sandbox, &["true"], &[&none])).unwrap_err();
    assert!(error.to_string().contains(&format!("net.fibs={}", number + 1)), "{error}");
}

#[test]
fn a_dataset_is_the_jails_to_manage() {
    let Some(sandbox) = Sandbox::new() else { return };
    let place = sandbox.host("dataset");
    let Some(root) = kleene_tests::pool::Root::at(&place) else {
        kleene_tests::mounts::skip("zfs", "KLEENE_POOL names no pool");
        return;
    };
    let given = format!("zfs.dataset={}", root.name());
    let launch = || with(&sandbox, &["cat"], &[&given, "allow.mount", "allow.mount.zfs"]);
    let error = sandbox.run_launch(&launch()).unwrap_err();
    assert!(error.to_string().contains("jailed=on"), "{error}");
    host("zfs", &["set", "jailed=on", root.name()]);
    let mut launch = launch();
    launch.process.stdin = true;
    let client = sandbox.attach(&launch).unwrap();
    // It is the jail's already.
    let jid = sandbox.platform.running().unwrap()[0].jid.to_string();
    let again = Command::new("zfs").args(["jail", &jid, root.name()]).output().unwrap();
    host("zfs", &["unjail", &jid, root.name()]);
    client.end();
    host("zfs", &["set", "jailed=off", root.name()]);
    assert!(!again.status.success());
}

#[test]
fn file_systems_of_the_kernels_own() {
    let Some(sandbox) = Sandbox::new() else { return };
    let kinds = |parameters: &[&str]| {
        let mut launch = with(&sandbox, &["cat"], parameters);
        launch.process.stdin = true;
        let client = sandbox.attach(&launch).unwrap();
        let mounts = sandbox.platform.mounts(&sandbox.container).unwrap();
        client.end();
        sandbox.platform.release(&sandbox.container, &sandbox.root()).unwrap();
        let places = mounts.iter().map(|mount| mount.destination.to_str().unwrap().to_owned());
        places.collect::<Vec<_>>()
    };
    assert_eq!(kinds(&[]), ["/dev"]);
    assert_eq!(kinds(&["mount.nodevfs"]), [""; 0]);
    assert_eq!(kinds(&["mount.fdescfs", "mount.procfs"]), ["/dev", "/dev/fd", "/proc"]);
}

#[test]
fn a_slow_command_takes_nothing_from_a_terminal() {
    let Some(sandbox) = Sandbox::new() else { return };
    let mut launch =
        with(&sandbox, &["sh", "-c", "seq 100"], &["exec.poststart=sleep 3", "persist"]);
    launch.process.tty = true;
    let mut client = sandbox.attach(&launch).unwrap();
    assert_eq!(client.wait_for("100\r\n").lines().count(), 99);
    let log = fs::read_to_string(sandbox.log()).unwrap();
    assert!(log.contains("100"), "{log}");
    assert!(sandbox.platform.kill(&sandbox.container).unwrap());
    client.wait_for_end();
}

#[test]
fn a_user_of_the_jails() {
    let Some(sandbox) = Sandbox::new() else { return };
    let launch =
        with(&sandbox, &["sh", "-c", "id -un; umask; echo $HOME"], &["exec.jail_user=www"]);
    assert_eq!(sandbox.run_launch(&launch).unwrap().output, "www\n0022\n/var/www\n");
    let mut launch = launch;
    launch.process.user = "root".to_owned();
    assert!(sandbox.run_launch(&launch).unwrap().output.starts_with("root\n"));
}

#[test]
fn a_terminal_is_its_processes_own() {
    let Some(sandbox) = Sandbox::new() else { return };
    let mut launch = sandbox.first(&["sh", "-c", "tty; test -c $(tty) && echo there; cat"]);
    (launch.process.tty, launch.process.stdin) = (true, true);
    launch.process.user = "www".to_owned();
    let mut client = sandbox.attach(&launch).unwrap();
    let name = client.wait_for("\r\n");
    client.wait_for("there\r\n");
    // Another process of the same jail, which has no terminal, does not see it.
    assert_ne!(sandbox.exec(&format!("test -c {name}")).code, 0);
    client.send(Kind::STDIN, b"");
    assert_eq!(client.finish().code, 0);
}

#[test]
fn limits() {
    let Some(sandbox) = Sandbox::new() else { return };
    let wrong = sandbox.platform.check_limits(&["memory=1".to_owned()]).unwrap_err();
    assert!(wrong.to_string().contains("did you mean 'memoryuse'"), "{wrong}");
    let limits = ["maxproc=5".to_owned(), "memoryuse=1G".to_owned()];
    if !kleened_sys::rctl::is_enabled().unwrap() {
        let error = sandbox.platform.check_limits(&limits).unwrap_err();
        assert!(error.to_string().contains("kern.racct.enable=1"), "{error}");
        kleene_tests::mounts::skip("racct", "kern.racct.enable is 0");
        return;
    }
    let rules = || {
        let filter = format!("jail:{}", sandbox.container);
        let said = Command::new("rctl").arg(filter).output().unwrap();
        String::from_utf8(said.stdout).unwrap().lines().count()
    };
    let mut launch = sandbox.first(&["cat"]);
    launch.process.stdin = true;
    launch.setup.as_mut().unwrap().limits = limits.to_vec();
    let client = sandbox.attach(&launch).unwrap();
    assert_eq!(rules(), 2);
    let crowd = "i=0; while [ $i -lt 10 ]; do sleep 1 & i=$((i+1)); done; wait";
    assert_ne!(sandbox.exec(crowd).errors, "");
    sandbox.platform.limit(&sandbox.container, &["openfiles=1000".to_owned()]).unwrap();
    assert_eq!(rules(), 1);
    assert_eq!(sandbox.exec(crowd).errors, "");
    client.end();
    assert_eq!(rules(), 0);
}
