//! The program as a user meets it: options, exit codes, errors, signals. Needs no privileges.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

fn fastpath(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overmesh-fastpath"));
    command.args(arguments).stderr(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Runs to the end; exit code and what it wrote to stderr.
fn run(arguments: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = fastpath(arguments).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

/// Runs until a signal, with the control socket answering.
fn serving(socket: &Path, arguments: &[&str]) -> Child {
    let child = fastpath(arguments).arg("--socket").arg(socket).spawn().unwrap();
    let start = Instant::now();
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(start.elapsed() < Duration::from_secs(5), "the socket does not answer");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn signal(child: &mut Child, signal: Signal) -> std::process::ExitStatus {
    kill_process(Pid::from_child(child), signal).unwrap();
    child.wait().unwrap()
}

#[test]
fn wrong_usage_exits_with_2_and_says_in_a_line_why() {
    for (arguments, cause) in [
        (&[][..], "neither --socket nor --config is given: there is nothing to do. give one of them"),
        (&["--nonsense"], "unexpected argument '--nonsense' found. type `overmesh-fastpath --help`"),
        (&["--check"], "the following required arguments were not provided: --config <FILE>. type"),
        (&["--log-format", "xml"], "invalid value 'xml' for '--log-format <LOG_FORMAT>' [possible values"),
        (
            &["--socket", "/tmp/x", "--fault", "loss=2"],
            "invalid value 'loss=2' for '--fault <loss=0.05,seed=7>': \"2\" is no chance. give a number",
        ),
    ] {
        let (code, message) = run(arguments);
        assert_eq!((code, message.lines().count()), (2, 1), "{message}");
        assert!(message.starts_with(&format!("error: {cause}")), "{message}");
    }
}

#[test]
fn help_is_no_error() {
    let Output { status, stdout, .. } = fastpath(&["--help"]).output().unwrap();
    assert!(status.success() && stdout.starts_with(b"Carries the packets of one host"));
}

#[test]
fn a_key_that_others_may_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let [config, key] = ["hosts.toml", "one.key"].map(|name| folder.path().join(name));
    std::fs::write(&config, "private_key_file = 'one.key'\n").unwrap();
    std::fs::write(&key, "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n").unwrap();
    for (mode, expected) in [(0o600, 0), (0o640, 1), (0o604, 1)] {
        std::fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        let (code, log) = run(&["--config", config.to_str().unwrap(), "--check"]);
        assert_eq!((code, log.lines().count()), (0, expected), "{mode:o}: {log}");
        assert_eq!(log.contains(&format!("type `chmod 600 {}`", key.display())), expected == 1);
    }
}

#[test]
fn check_says_whether_the_file_is_good() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hosts.toml");
    let path = path.to_str().unwrap();
    std::fs::write(path, "port = 6081\n[[peer]]\nname = 'b'\nprefixes = ['10.77.0.2/32']\n").unwrap();
    assert_eq!(run(&["--config", path, "--check"]), (0, String::new()));

    std::fs::write(path, "prot = 6081\n").unwrap();
    let (code, message) = run(&["--config", path, "--check"]);
    assert_eq!((code, message.lines().count()), (2, 1));
    assert!(message.starts_with(&format!("error: {path} line 1: unknown field `prot`")), "{message}");
    assert_eq!(run(&["--config", "/nonexistent", "--check"]).0, 2);
}

#[test]
fn the_example_in_the_readme_is_good() {
    let readme = include_str!("../../README.md");
    let example = readme.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("two-hosts.toml");
    std::fs::write(&path, example).unwrap();
    assert_eq!(run(&["--config", path.to_str().unwrap(), "--check"]), (0, String::new()));
}

#[test]
fn a_signal_ends_it_and_removes_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("fastpath.sock");
    for number in [Signal::TERM, Signal::INT] {
        let mut child = serving(&socket, &[]);
        assert_eq!(signal(&mut child, number).code(), Some(0));
        assert!(!socket.exists());
    }
}

#[test]
fn a_killed_one_leaves_nothing_that_hinders_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("fastpath.sock");
    signal(&mut serving(&socket, &[]), Signal::KILL);
    assert!(socket.exists());
    let mut next = serving(&socket, &[]);

    let (code, message) = run(&["--socket", socket.to_str().unwrap()]);
    assert_eq!(code, 1);
    let refusal = message.lines().last().unwrap();
    assert!(refusal.starts_with("error: another fastpath listens on "), "{refusal}");
    assert_eq!(signal(&mut next, Signal::TERM).code(), Some(0));
}

#[test]
fn the_json_log_is_one_object_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("fastpath.sock");
    let mut child = serving(&socket, &["--log-format", "json"]);
    signal(&mut child, Signal::TERM);
    let log = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(log.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{log}");
    assert!(log.contains("\"message\":\"started\""), "{log}");
}
