//! Every command, as transcripts.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde_json::json;

use crate::daemon;
use crate::golden::Transcript;
use crate::server::{Reply, Server, klee, run};

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

#[test]
fn volumes() {
    let daemon = daemon::start();
    let mut runs = Transcript::new("volumes.txt");
    runs.klee(
        &daemon,
        "volume ls
         lsv --theme simple
         lsv -q
         lsv -q --filter name=a
         lsv -s
         lsv --size --theme simple
         lsv -q -s
         lsv --size --format '{{.Name}} {{.Usage.used}} {{.Size}}'
         lsv -o json
         lsv --format '{{.Name}} {{.Labels.tier}} {{json .Populated}} {{.Owner}}'
         lsv --format '{{.Nope}}'
         lsv --format '{{json .Name}} {{.Name}}'
         lsv --filter name=my --filter label=tier=db --filter label=x --filter dangling=true
         lsv --filter in-use=false
         lsv --filter used=maybe
         lsv --filter used=maybe -o json
         lsv --filter size=1
         lsv --filter name=a --filter name=b
         lsv --filter name
         lsv -q -o json
         lsv --nope
         lsv --nope --output=json
         volume create my-vol
         volume create
         volume create new --label tier=db --label note=a=b --owner 770:771 --mode 750
         volume create new -o json
         volume create data --mode 0700
         volume create 'a b'
         volume create -ojson 'a b'
         volume create ../x
         volume create new --owner root
         volume create new --mode 9
         volume create new --size 10G --reserve 1.5KiB --profile postgres --property recordsize=8K --property com.sun:auto-snapshot=false
         volume create new --size 10X
         volume create new --property recordsize
         volume adopt tank/data/pg
         volume adopt tank/data/pg --name db -o json
         volume adopt other/pg
         volume adopt tank/data/pg --name a/b
         volume create new --access single-writer
         volume create new --access alone
         volume attach my-vol web --path /srv/data
         volume attach my-vol web --path /srv --read-only --nocopy --subpath a/b --noexec -o json
         volume attach data web --path /srv
         volume attach my-vol web
         volume attach my-vol web --path srv
         volume attach my-vol web --path /sys/x
         volume attach a/b web --path /srv
         volume detach my-vol web
         volume detach my-vol web --path /srv
         volume detach data web
         volume profiles
         volume profiles -o json
         volume inspect data
         isv data --format '{{.Volume.Name}} {{(index .Mountpoints 0)}}'
         isv data --format '{{.Volume.Name}} {{.Volume.State}}'
         isv data --format '{{.Nope}}'
         isv data nope data --format '{{.Volume.Name}}'
         isv nope
         -o json isv data
         --output=json isv data
         isv data -s --format '{{.Volume.Usage.referenced}} {{.Volume.Usage.compress_ratio}}'
         volume rm my-vol
         rmv my-vol nope my-vol
         rmv nope data my-vol
         rmv nope data my-vol -o json
         volume rm -o json
         rmv data
         rmv data -o json
         volume rm broken
         volume rm broken -o json
         volume prune -f
         volume prune --dry-run
         volume prune --force -o json",
    );
    let prune = strings(&["volume", "prune"]);
    runs.with_input(&daemon, &prune, "n\n");
    runs.with_input(&daemon, &prune, "y\n");
    runs.with_input(&daemon, &prune, "Yes");
    runs.with_input(&daemon, &prune, "\n");
    runs.with_input(&daemon, &prune, "");
    runs.compare();
}

#[test]
fn containers() {
    let daemon = daemon::start();
    let mut runs = Transcript::new("containers.txt");
    runs.klee(
        &daemon,
        "container ls
         lsc -a --theme simple
         lsc -aq
         lsc -a -o json
         lsc --format '{{.ID}} {{.ImageName}} {{.ExitCode}} {{json .Cmd}}'
         lsc --filter status=stopped
         lsc --filter status=paused
         lsc --filter name=luc -a
         lsc --filter volume=x
         container inspect web
         isc fa3f web --format '{{.Container.Name}}'
         isc nope
         container create FreeBSD
         create --name web -u ntpd:wheel -e A=1 -e B= -J allow.mlock -P --restart on-startup -l disabled --hostname h --workdir /tmp --rm -m data:/var/db -m /mnt:/host:ro -m 'type=volume,src=logs,dst=/var/log,volume-nocopy' FreeBSD:latest@0123456789ab /bin/sh -c 'ls -l /'
         create -e UNKNOWN_HERE FreeBSD
         create -e 'A B=1' FreeBSD
         create -e =x FreeBSD
         create -e 'UNKNOWN HERE' FreeBSD
         create nosuch
         create nosuch -o json
         create -n net FreeBSD
         run -n net -l host FreeBSD
         create -l lolnet FreeBSD
         create --name .bad FreeBSD
         create -m a:b:c:d FreeBSD
         create -m abc FreeBSD
         create -m abc -o json FreeBSD
         create -m abc FreeBSD -- ls -o json
         create -m a:/b:zz FreeBSD
         create -m v:/ FreeBSD
         create -m :/dst FreeBSD
         create -m a:/x -m b:/x/ FreeBSD
         stop web
         container stop --time 3 web lucid_austin web
         rmc web
         rmc -f web lucid_austin
         rmc -f nope web once
         wait nope web
         rmc nope
         update --env TEST=lol -J x=y --restart on-startup -P --hostname h -u u --name n web /bin/sleep 10
         update -P=false web
         update web
         rename web www
         rename web 'no way'
         wait web
         wait web -o json
         logs web
         logs -f --tail 10 --timestamps web
         container prune -f
         container prune --dry-run",
    );
    runs.with_input(&daemon, &strings(&["container", "prune"]), "y\n");
    runs.compare();
}

#[test]
fn images() {
    let daemon = daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("base.tar");
    std::fs::write(&archive, "pretend").unwrap();
    let mut runs = Transcript::new("images.txt");
    runs.klee(
        &daemon,
        "image ls
         lsi --theme simple
         lsi -q
         lsi -o json
         lsi --format '{{.Name}}:{{.Tag}}'
         lsi --filter dangling=true
         lsi --filter name=Free
         image inspect FreeBSD
         isi FreeBSD:latest --format '{{json .Cmd}}'
         isi a:b:c
         image tag FreeBSD base:14
         image tag FreeBSD base@x
         image rm other:new
         rmi FreeBSD
         rmi FreeBSD other:new
         image save web web:v1 --cmd '/usr/sbin/nginx -x' --user www -e A=1
         image export FreeBSD
         image prune -f
         image prune -a -f
         image prune -a --dry-run
         image import /nonexistent/file base
         image export FreeBSD -o /nonexistent/file",
    );
    runs.with_input(&daemon, &strings(&["image", "import", "-", "base:14"]), "a stream");
    runs.with_input(
        &daemon,
        &strings(&["image", "import", "-", "base", "--cmd", "[\"/bin/sh\"]"]),
        "x",
    );
    runs.with_input(&daemon, &strings(&["image", "import", "-", "base", "--cmd", "[1]"]), "x");
    runs.with_input(&daemon, &strings(&["image", "prune"]), "y\n");
    runs.compare();

    let done = run(daemon.klee(&["image", "import"]).arg(&archive).arg("base"), b"");
    assert_eq!(
        (done.status, done.stdout.as_str(), done.stderr.as_str()),
        (0, "d17fccf6f510\n", "")
    );
    assert_eq!(daemon.requests()[0].body, b"pretend");
}

#[test]
fn system() {
    let daemon = daemon::start();
    let mut runs = Transcript::new("system.txt");
    runs.klee(
        &daemon,
        "system info
         info -o json
         --version
         nosuch
         volume rm",
    );
    runs.compare();
}

#[test]
fn a_command_that_is_not_whole_shows_its_help() {
    let daemon = daemon::start();
    for (words, usage) in [
        (&[][..], "Usage: klee [OPTIONS] <COMMAND>"),
        (&["--theme", "simple"], "Usage: klee [OPTIONS] <COMMAND>"),
        (&["volume"], "Usage: klee volume [OPTIONS] <COMMAND>"),
        (&["image", "--theme", "simple"], "Usage: klee image [OPTIONS] <COMMAND>"),
    ] {
        let done = daemon.run(words);
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{words:?}");
        assert!(done.stdout.contains(usage), "{words:?}: {}", done.stdout);
        assert!(done.stdout.ends_with('\n') && !done.stdout.contains("lsv"), "{words:?}");
    }
}

#[test]
fn a_shortcut_has_the_help_of_what_it_stands_for() {
    let daemon = daemon::start();
    for (shortcut, group, verb) in [
        ("lsv", "volume", "ls"),
        ("rmi", "image", "rm"),
        ("isc", "container", "inspect"),
        ("run", "container", "run"),
        ("restart", "container", "restart"),
        ("info", "system", "info"),
    ] {
        for help in ["-h", "--help"] {
            let short = daemon.run(&[shortcut, help]).stdout;
            let long = daemon.run(&[group, verb, help]).stdout;
            assert_eq!(
                short,
                long.replace(&format!("klee {group} {verb} "), &format!("klee {shortcut} "))
            );
        }
    }
}

#[test]
fn an_argument_that_is_no_text_is_named() {
    let daemon = daemon::start();
    let done = run(daemon.klee(&["run", "base"]).arg(OsStr::from_bytes(b"a\xff")), b"");
    assert_eq!(done.status, 2, "{done:?}");
    assert!(done.stderr.starts_with("klee: the argument 'a\\xff' is not UTF-8"), "{done:?}");
}

#[test]
fn jail_parameters_without_effect_are_warned_of() {
    let linux = Server::start(|request| match request.path.as_str() {
        "/info" => Reply::Json(
            200,
            json!({"version": "0.1.0", "storage": "dir", "platform": "linux", "root": "/r"}),
        ),
        _ => daemon::answer(request),
    });
    let warning = "klee: warning: jail parameters have no effect on Linux\n";
    for words in [&["create", "-J", "x=1", "FreeBSD"][..], &["update", "-J", "x=1", "web"]] {
        let done = linux.run(words);
        assert_eq!((done.status, done.stderr.as_str()), (0, warning), "{words:?}");
    }
    let done = linux.run(&["create", "FreeBSD"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""));
    assert_eq!(daemon::start().run(&["create", "-J", "x=1", "FreeBSD"]).stderr, "");
}

#[test]
fn a_daemon_without_dry_run_is_not_asked_for_one() {
    let kleene = Server::start(|request| match request.path.as_str() {
        "/info" => Reply::Raw(404, "text/plain", Vec::new()),
        _ => daemon::answer(request),
    });
    for words in [&["volume", "prune"][..], &["volume", "prune", "--dry-run"]] {
        assert_ne!(kleene.run(words).status, 0, "{words:?}");
        let asked = kleene.requests();
        assert!(asked.iter().all(|request| request.method == "GET"), "{asked:?}");
    }
}

#[test]
fn the_environment_stands_for_options() {
    let daemon = daemon::start();
    for (theme, expected) in [("simple", "+---"), ("", "\u{2500}")] {
        let done = run(daemon.klee(&["lsv"]).env("KLEE_THEME", theme), b"");
        assert!(done.stdout.contains(expected), "{theme}: {done:?}");
    }
    let done = run(daemon.klee(&["lsv", "--theme", "fancy"]).env("KLEE_THEME", "simple"), b"");
    assert!(done.stdout.contains('\u{2500}'), "{done:?}");
    let done = run(daemon.klee(&["lsv"]).env("KLEE_THEME", "pink"), b"");
    assert_eq!(
        (done.status, done.stderr.as_str()),
        (2, "klee: KLEE_THEME is fancy or simple, not 'pink'\n")
    );
    let elsewhere =
        run(daemon.klee(&["lsv", "--host", "/nonexistent/socket"]).env_remove("X"), b"");
    assert_eq!(elsewhere.status, 10, "{elsewhere:?}");
    assert_eq!(run(klee(&["info"]).env("KLEE_HOST", ""), b"").status, 10);
}

#[test]
fn strange_answers() {
    let daemon = daemon::start();
    let mut runs = Transcript::new("strange.txt");
    runs.klee(
        &daemon,
        "rmv kleenes
         rmv schema
         rmv html
         rmv strange
         rmv nojson
         rmv dropped
         rmv cut
         rmv nope -o json",
    );
    runs.compare();
}

#[test]
fn empty_lists() {
    let daemon = Server::start(|_| Reply::Json(200, serde_json::json!([])));
    let mut runs = Transcript::new("empty.txt");
    runs.klee(
        &daemon,
        "lsv
         lsv --theme simple
         lsv -q
         lsv -o json
         lsc
         lsi",
    );
    runs.compare();
}

#[test]
fn a_daemon_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sock");
    let host = |prefix: &str| format!("{prefix}{}", socket.display());
    for host in [host(""), host("unix://"), host("http://")] {
        let done = run(&mut klee(&["--host", &host, "lsv"]), b"");
        assert_eq!(done.status, 10, "{done:?}");
        let expected = format!("klee: cannot reach kleened at {}: ", socket.display());
        assert!(done.stderr.starts_with(&expected), "{done:?}");
        assert!(done.stderr.contains("is kleened running?"), "{done:?}");
    }
    for host in ["tcp://x", "sock", "http://host:80"] {
        assert_eq!(run(&mut klee(&["--host", host, "lsv"]), b"").status, 2, "{host}");
    }
    // A socket that nobody listens on any more.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let done = run(&mut klee(&["--host", &host(""), "run", "base"]), b"");
    assert_eq!(done.status, 125);
    assert!(done.stderr.contains("is kleened running?"), "{done:?}");
}

#[test]
fn the_daemon_is_asked_for_exact_answers() {
    let daemon = daemon::start();
    daemon.run(&["rmv", "my-vol"]);
    let requests = daemon.requests();
    assert_eq!(requests[0].header("prefer"), Some(kleened_api::routes::PREFER_EXACT));
    assert_eq!(requests[0].header("host"), Some("localhost"));
}
