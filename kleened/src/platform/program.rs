//! How a process becomes the program that was asked for.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use kleened_sys::process::exit_now;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::WaitStatus;

use super::supervisor::Failure;
use super::user::User;
use super::{Error, Process};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The error for a program that can't be started.
pub(super) fn start_error(program: &str, reason: String, exit_code: i32) -> Failure {
    Error::Start { program: program.to_owned(), reason, exit_code }.into()
}

/// The process is in the directory that it is to start in, which is returned.
pub(super) fn enter_directory(process: &Process) -> Result<&str, Failure> {
    let workdir = if process.workdir.is_empty() { "/" } else { &process.workdir };
    rustix::process::chdir(workdir).map_err(|errno| {
        let program = process.argv.first().map_or("", String::as_str);
        let reason = match errno {
            Errno::NOENT => format!("there is no directory {workdir} in the container to start in"),
            _ => {
                let error = std::io::Error::from(errno);
                format!("can't start in the directory {workdir}: {error}")
            }
        };
        start_error(program, reason, 126)
    })?;
    Ok(workdir)
}

/// Executes the program; returns when that fails. The variables in `class` are those of the user's login
/// class.
pub(super) fn run(process: &Process, user: &User, class: &[String]) -> Failure {
    let program = process.argv.first().map_or("", String::as_str);
    let environment = environment(process, user, class);
    let text = |texts: &[String]| {
        texts.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>()
    };
    let (Ok(arguments), Ok(variables)) = (text(&process.argv), text(&environment)) else {
        let reason = "its arguments and environment must not contain a NUL byte";
        return start_error(program, reason.to_owned(), 126);
    };
    if program.is_empty() {
        return start_error(program, "the command is empty".to_owned(), 127);
    }
    let path = environment.iter().find_map(|variable| variable.strip_prefix("PATH="));
    let candidates: Vec<String> = if program.contains('/') {
        vec![program.to_owned()]
    } else {
        let dirs = path.unwrap_or_default().split(':');
        // An empty one is the present directory.
        dirs.map(|dir| if dir.is_empty() { "." } else { dir })
            .map(|dir| format!("{dir}/{program}"))
            .collect()
    };
    let mut refused = None;
    for candidate in candidates {
        let Ok(name) = CString::new(candidate.as_str()) else { continue };
        let errno = kleened_sys::process::execute(&name, &arguments, &variables);
        match Errno::from_io_error(&errno) {
            Some(Errno::NOENT | Errno::NOTDIR)
                if rustix::fs::access(&candidate, rustix::fs::Access::EXISTS).is_err() =>
            {
                continue;
            }
            Some(Errno::NOENT) => {
                let reason =
                    format!("the interpreter or loader that {candidate} names is not there");
                return start_error(program, reason, 127);
            }
            Some(Errno::ACCESS) => refused = Some((candidate, errno)),
            _ => return start_error(program, format!("{candidate}: {errno}"), 126),
        }
    }
    match refused {
        Some((path, errno)) => {
            start_error(program, format!("{path} can't be executed: {errno}"), 126)
        }
        None if program.contains('/') => {
            start_error(program, "there is no such file in the container".to_owned(), 127)
        }
        None => {
            let path = path.unwrap_or_default();
            start_error(
                program,
                format!("it is in no directory of PATH in the container ({path})"),
                127,
            )
        }
    }
}

/// The variables that were asked for, and what a program can expect besides.
fn environment(process: &Process, user: &User, class: &[String]) -> Vec<String> {
    let mut variables = process.env.clone();
    let mut add = |name: &str, value: &str| {
        let is_there = variables
            .iter()
            .any(|variable| variable.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')));
        if !is_there {
            variables.push(format!("{name}={value}"));
        }
    };
    for (name, value) in class.iter().filter_map(|variable| variable.split_once('=')) {
        add(name, value);
    }
    add("PATH", DEFAULT_PATH);
    add("HOME", &user.home);
    add("SHELL", &user.shell);
    if let Some(name) = &user.name {
        add("USER", name);
    }
    if process.tty {
        add("TERM", "xterm");
    }
    variables
}

/// What went wrong inside goes to the supervisor, and the process ends.
pub(super) fn give_up(line: &OwnedFd, failure: impl Into<Failure>) -> ! {
    if let Ok(text) = serde_json::to_vec(&failure.into())
        && let Ok(line) = line.try_clone()
    {
        // Without a supervisor there is nobody to tell.
        let _ = File::from(line).write_all(&text);
    }
    exit_now(127)
}

/// Whether the supervisor is gone.
pub(super) fn is_abandoned(line: &OwnedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(line.as_fd(), PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)) != Ok(0)
}

/// The exit status that stands for how a process ended.
pub(super) fn exit_code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or(9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_comes_before_the_class_and_that_before_the_rest() {
        let text = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let process = Process {
            argv: text(&["sh"]),
            env: text(&["LANG=de_DE.UTF-8"]),
            user: String::new(),
            workdir: String::new(),
            tty: false,
            stdin: false,
        };
        let user = User::find("", b"", b"").unwrap();
        let class = text(&["LANG=C.UTF-8", "BLOCKSIZE=K", "PATH=/bin"]);
        let found = environment(&process, &user, &class);
        let wanted = [
            "LANG=de_DE.UTF-8",
            "BLOCKSIZE=K",
            "PATH=/bin",
            "HOME=/root",
            "SHELL=/bin/sh",
            "USER=root",
        ];
        assert_eq!(found, wanted);
    }
}
