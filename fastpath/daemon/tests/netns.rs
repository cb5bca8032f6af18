//! Real TUN interfaces and UDP sockets: two fastpaths in two network namespaces.
//!
//! Needs root, /dev/net/tun and `ip`; without them each test says that it was skipped and why. What
//! the tests prove of forwarding is proven without them in `lanes.rs`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

/// Two namespaces joined by a wire; gone when dropped.
struct Lab {
    namespaces: [String; 2],
    folder: TempDir,
}

/// What the two hosts call each other: underlay IPv4 and IPv6, overlay IPv4 and IPv6.
const UNDERLAY: [[&str; 2]; 2] = [["192.0.2.1", "2001:db8::1"], ["192.0.2.2", "2001:db8::2"]];
const OVERLAY: [[&str; 2]; 2] = [["10.77.0.1", "fd00:77::1"], ["10.77.0.2", "fd00:77::2"]];

/// Numbers in a stream, four bytes each.
const STREAM: u32 = 1 << 20;

impl Lab {
    /// `None`, and a line on why, where the host does not allow it.
    fn new(test: &str) -> Option<Self> {
        if let Some(reason) = obstacle() {
            println!("skipped {test}: {reason}");
            return None;
        }
        let namespaces = ["a", "b"].map(|side| format!("omfp-{test}-{side}-{}", std::process::id()));
        let lab = Self { namespaces, folder: tempfile::tempdir().unwrap() };
        lab.wire();
        Some(lab)
    }

    fn wire(&self) {
        let [a, b] = &self.namespaces;
        ip(&format!("netns add {a}"));
        ip(&format!("netns add {b}"));
        ip(&format!("link add wire netns {a} type veth peer name wire netns {b}"));
        for (namespace, [v4, v6]) in self.namespaces.iter().zip(UNDERLAY) {
            ip(&format!("-n {namespace} address add {v4}/24 dev wire"));
            ip(&format!("-n {namespace} address add {v6}/64 dev wire nodad"));
            ip(&format!("-n {namespace} link set wire up"));
        }
    }

    /// Starts the fastpath of one side, its peer reached over underlay family `family` (0: IPv4).
    fn start(&self, side: usize, family: usize, addresses: bool, arguments: &[&str]) -> Fastpath {
        let (other, log) = (1 - side, self.path(side, "log"));
        let endpoint = match UNDERLAY[other][family] {
            v6 if v6.contains(':') => format!("[{v6}]:6081"),
            v4 => format!("{v4}:6081"),
        };
        let [v4, v6] = OVERLAY[other];
        let [own_v4, own_v6] = OVERLAY[side];
        let own = if addresses { format!("'{own_v4}/24', '{own_v6}/64'") } else { String::new() };
        let config = format!(
            "addresses = [{own}]\n[[peer]]\nname = 'other'\nprefixes = ['{v4}/32', '{v6}/128']\n\
             endpoints = ['{endpoint}']\n"
        );
        let path = self.path(side, "toml");
        fs::write(&path, config).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.namespaces[side], env!("CARGO_BIN_EXE_overmesh-fastpath")])
            .arg("--config")
            .arg(path)
            .args(arguments)
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let fastpath = Fastpath { child, log };
        eventually(|| fastpath.log().contains("started"));
        fastpath
    }

    fn path(&self, side: usize, kind: &str) -> PathBuf {
        self.folder.path().join(format!("{side}.{kind}"))
    }

    /// Whether side 0 gets echoes from this address of side 1.
    fn pings(&self, address: &str) -> bool {
        let [a, _] = &self.namespaces;
        let ping = ["netns", "exec", a, "ping", "-c", "3", "-i", "0.05", "-W", "1", "-q", address];
        Command::new("ip").args(ping).stdout(Stdio::null()).status().unwrap().success()
    }

    /// Does something in the network of one side.
    fn inside<T: Send + 'static>(
        &self,
        side: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = File::open(format!("/run/netns/{}", self.namespaces[side])).unwrap();
        thread::spawn(move || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network).unwrap();
            work()
        })
    }

    /// Sends a stream from side 0 to this address of side 1; what arrives is compared.
    fn streams(&self, address: &'static str) {
        let sent: Vec<u8> = (0..STREAM).flat_map(u32::to_le_bytes).collect();
        let listening = self.inside(1, move || TcpListener::bind((address, 0)).unwrap()).join().unwrap();
        let to = listening.local_addr().unwrap();
        let received = thread::spawn(move || {
            let mut bytes = vec![];
            listening.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let bytes = sent.clone();
        self.inside(0, move || TcpStream::connect(to).unwrap().write_all(&bytes).unwrap()).join().unwrap();
        assert!(received.join().unwrap() == sent, "what arrived at {address} is not what was sent");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}

/// A running fastpath; killed when dropped.
struct Fastpath {
    child: Child,
    log: PathBuf,
}

impl Fastpath {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn end(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Fastpath {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn obstacle() -> Option<&'static str> {
    if !geteuid().is_root() {
        return Some("needs root");
    }
    if !fs::exists("/dev/net/tun").unwrap_or(false) {
        return Some("needs /dev/net/tun");
    }
    let ip = Command::new("ip").arg("-V").stdout(Stdio::null()).status();
    ip.is_err().then_some("needs ip (iproute2)")
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

fn eventually(mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(5), "waited in vain");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn hosts_ping_over_either_underlay_family() {
    let Some(lab) = Lab::new("ping") else { return };
    for family in [0, 1] {
        let _running = [0, 1].map(|side| lab.start(side, family, true, &[]));
        for address in OVERLAY[1] {
            assert!(lab.pings(address), "{address} over {}", UNDERLAY[1][family]);
        }
    }
}

#[test]
fn streams_arrive_whole_whatever_offloads_are_switched_off() {
    let Some(lab) = Lab::new("offload") else { return };
    for without in ["", "tso", "uso", "gso", "gro", "tso,uso,gso,gro"] {
        let option = format!("--no-offload={without}");
        let arguments: &[&str] = if without.is_empty() { &[] } else { &[&option] };
        // With one side and with both: either may be the one that lacks it.
        for others in [&[][..], arguments] {
            let _running = [lab.start(0, 0, true, arguments), lab.start(1, 0, true, others)];
            for address in OVERLAY[1] {
                lab.streams(address);
            }
        }
    }
}

#[test]
fn a_persistent_interface_serves_with_offloads_and_without_by_turns() {
    let Some(lab) = Lab::new("turns") else { return };
    let [a, _] = &lab.namespaces;
    ip(&format!("-n {a} tuntap add om0 mode tun"));
    ip(&format!("-n {a} address add {}/24 dev om0", OVERLAY[0][0]));
    ip(&format!("-n {a} link set om0 mtu 1420 up"));
    let _b = lab.start(1, 0, true, &[]);
    for (arguments, signal) in [
        (&[][..], Signal::KILL),
        (&["--no-offload=tso,uso"][..], Signal::KILL),
        (&["--no-offload=uso"], Signal::TERM),
        (&["--no-offload=tso,uso,gso,gro"], Signal::TERM),
        (&[], Signal::TERM),
    ] {
        let mut fastpath = lab.start(0, 0, false, arguments);
        lab.streams(OVERLAY[1][0]);
        fastpath.end(signal);
    }
}

#[test]
fn a_kill_and_restart_on_a_persistent_interface_keeps_its_addresses() {
    let Some(lab) = Lab::new("kill") else { return };
    let [a, _] = &lab.namespaces;
    ip(&format!("-n {a} tuntap add om0 mode tun"));
    ip(&format!("-n {a} address add {}/24 dev om0", OVERLAY[0][0]));
    ip(&format!("-n {a} link set om0 mtu 1420 up"));
    let _b = lab.start(1, 0, true, &[]);
    let mut first = lab.start(0, 0, false, &[]);
    assert!(lab.pings(OVERLAY[1][0]));

    first.end(Signal::KILL);
    let _second = lab.start(0, 0, false, &[]);
    assert!(lab.pings(OVERLAY[1][0]));
}

#[test]
fn a_deleted_interface_ends_the_process_with_its_name() {
    let Some(lab) = Lab::new("lost") else { return };
    let mut fastpath = lab.start(0, 0, true, &[]);
    ip(&format!("-n {} link delete om0", lab.namespaces[0]));
    assert_eq!(fastpath.child.wait().unwrap().code(), Some(1));
    let log = fastpath.log();
    assert!(log.lines().last().unwrap().starts_with("error: device om0 is lost: "), "{log}");
}

#[test]
fn a_second_fastpath_is_told_what_the_first_holds() {
    let Some(lab) = Lab::new("busy") else { return };
    let _first = lab.start(0, 0, true, &[]);
    let config = lab.path(0, "toml");
    let second = Command::new("ip")
        .args(["netns", "exec", &lab.namespaces[0], env!("CARGO_BIN_EXE_overmesh-fastpath"), "--config"])
        .arg(config)
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let message = String::from_utf8(second.stderr).unwrap();
    assert_eq!(
        message,
        "error: interface om0 is in use by another process. stop that process, or choose another interface name\n"
    );
}

#[test]
fn a_capture_holds_the_inner_packets_and_faults_do_not_stop_traffic() {
    let Some(lab) = Lab::new("pcap") else { return };
    let capture = lab.path(0, "pcap");
    let _a = lab.start(0, 0, true, &["--pcap", capture.to_str().unwrap()]);
    let _b = lab.start(1, 0, true, &["--fault", "duplicate=0.5,reorder=0.2,seed=7"]);
    assert!(lab.pings(OVERLAY[1][0]));
    let capture = fs::read(capture).unwrap();
    let overlay = [10, 77, 0, 2];
    assert_eq!(capture[20..24], 101_u32.to_ne_bytes());
    assert!(capture.windows(4).any(|bytes| bytes == overlay));
}
