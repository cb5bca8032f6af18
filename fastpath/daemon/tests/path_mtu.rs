//! Paths that take less than they seem to: real interfaces, a router between the hosts, in both modes.
//!
//! The router says nothing of what it drops, as many do. Needs root, /dev/net/tun and `ip`; without them
//! each test says that it was skipped and why.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use overmesh_core::noise::PrivateKey;
use rustix::process::geteuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

const OVERLAY: [[&str; 2]; 2] = [["10.77.0.1", "fd00:77::1"], ["10.77.0.2", "fd00:77::2"]];
/// Whether packets are sealed, whether IPv6 carries them, and the bytes that this takes: the IP header, UDP
/// (8), Geneve (8) or a seal (32).
const WAYS: [(bool, bool, u32); 4] =
    [(false, false, 36), (true, false, 60), (false, true, 56), (true, true, 80)];

/// Two hosts with a router between them; gone when dropped.
struct Lab {
    hosts: [String; 2],
    router: String,
    ipv6: bool,
    folder: TempDir,
    fastpaths: Vec<Child>,
}

impl Lab {
    /// Links that take `link` bytes, of IPv4 or IPv6 alone. `None`, and a line on why, where the host does not
    /// allow it.
    fn new(test: &str, link: u32, ipv6: bool) -> Option<Self> {
        if !geteuid().is_root() || !fs::exists("/dev/net/tun").unwrap_or(false) {
            println!("skipped {test}: needs root and /dev/net/tun");
            return None;
        }
        let name = |host| format!("ompm-{test}-{host}-{}", std::process::id());
        let lab = Self {
            hosts: [name("a"), name("b")],
            router: name("r"),
            ipv6,
            folder: tempfile::tempdir().unwrap(),
            fastpaths: vec![],
        };
        lab.wire(link);
        Some(lab)
    }

    fn wire(&self, link: u32) {
        let router = &self.router;
        ip(&format!("netns add {router}"));
        for (side, host) in self.hosts.iter().enumerate() {
            ip(&format!("netns add {host}"));
            let [host_mac, router_mac] = [2, 1].map(|end| format!("02:00:00:00:0{side}:0{end}"));
            ip(&format!(
                "link add wire address {host_mac} netns {host} type veth \
                 peer name to{side} address {router_mac} netns {router}"
            ));
            ip(&format!("-n {host} link set wire mtu {link} up"));
            ip(&format!("-n {router} link set to{side} mtu {link} up"));
            let prefix = if self.ipv6 { "64 nodad" } else { "24" };
            let [host_ip, router_ip] = self.underlay(side);
            ip(&format!("-n {host} address add {host_ip}/{prefix} dev wire"));
            ip(&format!("-n {router} address add {router_ip}/{prefix} dev to{side}"));
            ip(&format!("-n {host} route add default via {router_ip}"));
            // Known beforehand, as the router may not say where it is.
            ip(&format!("-n {host} neighbour replace {router_ip} lladdr {router_mac} dev wire"));
            ip(&format!("-n {router} neighbour replace {host_ip} lladdr {host_mac} dev to{side}"));
        }
        let forward = if self.ipv6 { "net.ipv6.conf.all.forwarding=1" } else { "net.ipv4.ip_forward=1" };
        ip(&format!("netns exec {router} sysctl -qw {forward}"));
        // What the router itself has to say goes nowhere.
        let (family, protocol) = if self.ipv6 { ("-6", "ipv6-icmp") } else { ("-4", "icmp") };
        ip(&format!("-n {router} {family} rule add iif lo ipproto {protocol} blackhole"));
    }

    /// The addresses of a side's link: the host's, the router's.
    fn underlay(&self, side: usize) -> [String; 2] {
        [2, 1].map(
            |end| {
                if self.ipv6 { format!("fd00:{side}::{end}") } else { format!("192.0.{side}.{end}") }
            },
        )
    }

    /// From now on the router passes packets of so many bytes, either way.
    fn narrow(&self, mtu: u32) {
        for side in 0..2 {
            ip(&format!("-n {} link set to{side} mtu {mtu}", self.router));
        }
    }

    fn start(&mut self, sealed: bool, mtu: u32) {
        self.fastpaths = (0..2).map(|side| self.start_one(side, sealed, mtu)).collect();
    }

    fn start_one(&self, side: usize, sealed: bool, mtu: u32) -> Child {
        let other = 1 - side;
        let ([own_v4, own_v6], [v4, v6]) = (OVERLAY[side], OVERLAY[other]);
        let [there, _] = self.underlay(other);
        let there = if self.ipv6 { format!("[{there}]") } else { there };
        let (own_key, its_key) = if sealed { self.keys(side) } else { Default::default() };
        let config = format!(
            "mtu = {mtu}\nport = 6081\naddresses = ['{own_v4}/24', '{own_v6}/64']\npath_mtu_raise = 4\n{own_key}\
             [[peer]]\nname = 'other'\nprefixes = ['{v4}/32', '{v6}/128']\n\
             endpoints = ['{there}:6081']\n{its_key}"
        );
        fs::write(self.path(side, "toml"), config).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.hosts[side], env!("CARGO_BIN_EXE_overmesh-fastpath"), "--config"])
            .arg(self.path(side, "toml"))
            .stderr(File::create(self.path(side, "log")).unwrap())
            .spawn()
            .unwrap();
        eventually(5, || self.log(side).contains("started"));
        child
    }

    /// The lines on keys: this side's, the other's.
    fn keys(&self, side: usize) -> (String, String) {
        let key = |side: usize| [u8::try_from(side).unwrap() + 1; 32];
        let file = self.path(side, "key");
        fs::write(&file, BASE64_STANDARD.encode(key(side))).unwrap();
        let other = PrivateKey::from(key(1 - side)).public();
        let other = BASE64_STANDARD.encode(other.bytes());
        (format!("private_key_file = '{}'\n", file.display()), format!("public_key = '{other}'\n"))
    }

    fn path(&self, side: usize, kind: &str) -> PathBuf {
        self.folder.path().join(format!("{side}.{kind}"))
    }

    fn log(&self, side: usize) -> String {
        fs::read_to_string(self.path(side, "log")).unwrap()
    }

    /// Waits until the latest that is known at side 0 is this.
    fn finds(&self, mtu: u32) {
        let latest = || self.log(0).lines().rfind(|line| line.contains("path MTU found")).map(str::to_owned);
        eventually(20, || latest().is_some_and(|line| line.contains(&format!("mtu={mtu}"))));
    }

    /// What a command in the network of side 0 prints, either way, and whether it succeeds.
    fn says(&self, command: &str) -> (bool, String) {
        let all = ["netns", "exec", &self.hosts[0]].into_iter().chain(command.split(' '));
        let done = Command::new("ip").args(all).output().unwrap();
        (done.status.success(), String::from_utf8([done.stdout, done.stderr].concat()).unwrap())
    }

    /// Sends datagrams of so many bytes to side 1, as any program does, until one is answered.
    fn datagram_arrives(&self, address: &'static str, bytes: usize) {
        let there = self.inside(1, move || UdpSocket::bind((address, 0)).unwrap()).join().unwrap();
        let to = there.local_addr().unwrap();
        let own = OVERLAY[0][usize::from(to.is_ipv6())];
        let here = self.inside(0, move || UdpSocket::bind((own, 0)).unwrap()).join().unwrap();
        there.set_nonblocking(true).unwrap();
        eventually(3, || {
            // The first may be refused, by a kernel that has just been told.
            let _ = here.send_to(&vec![7; bytes], to);
            thread::sleep(Duration::from_millis(20));
            there.recv(&mut vec![0; bytes]).is_ok_and(|arrived| arrived == bytes)
        });
    }

    fn inside<T: Send + 'static>(
        &self,
        side: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = File::open(format!("/run/netns/{}", self.hosts[side])).unwrap();
        thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }

    /// A stream from side 0 to this address of side 1, for as long as it is kept.
    fn stream(&self, address: &'static str) -> Stream {
        let listening = self.inside(1, move || TcpListener::bind((address, 0)).unwrap()).join().unwrap();
        let to = listening.local_addr().unwrap();
        let (arrived, kept) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let (count, wanted) = (arrived.clone(), Arc::downgrade(&kept));
        thread::spawn(move || {
            let (mut stream, mut buffer) = (listening.accept().unwrap().0, vec![0; 1 << 16]);
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                count.fetch_add(len, Relaxed);
            }
        });
        self.inside(0, move || {
            let (mut stream, bytes) = (TcpStream::connect(to).unwrap(), vec![7; 1 << 16]);
            stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            while wanted.strong_count() > 0 {
                let _ = stream.write(&bytes);
            }
        });
        Stream { arrived, _kept: kept }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for fastpath in &mut self.fastpaths {
            let _ = fastpath.kill();
            let _ = fastpath.wait();
        }
        for namespace in self.hosts.iter().chain([&self.router]) {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}

struct Stream {
    arrived: Arc<AtomicUsize>,
    _kept: Arc<()>,
}

impl Stream {
    /// How long it takes until so many bytes more have arrived.
    fn time(&self, bytes: usize) -> Duration {
        let (start, before) = (Instant::now(), self.arrived.load(Relaxed));
        eventually(20, || self.arrived.load(Relaxed) >= before + bytes);
        start.elapsed()
    }
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

#[track_caller]
fn eventually(seconds: u64, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "waited in vain");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_narrow_path_delays_no_stream_and_hosts_are_told() {
    for (sealed, ipv6, room) in WAYS {
        let Some(mut lab) = Lab::new("narrow", 1500, ipv6) else { return };
        lab.narrow(1400);
        lab.start(sealed, 1420);
        for address in OVERLAY[1] {
            let stream = lab.stream(address);
            let time = stream.time(1 << 20);
            assert!(time < Duration::from_secs(3), "{address}: {time:?}");
        }
        lab.finds(1400 - room);
        for (address, headers) in OVERLAY[1].into_iter().zip([28, 48]) {
            let mtu = 1400 - room;
            let (fits, most) = (mtu - headers, 1420 - headers);
            let (_, told) = lab.says(&format!("ping -M do -c 1 -W 1 -s {most} {address}"));
            assert!(told.contains(&format!("mtu = {mtu}")) || told.contains(&format!("mtu={mtu}")), "{told}");
            let (_, route) = lab.says(&format!("ip route get {address}"));
            assert!(route.contains(&format!("mtu {mtu}")), "{route}");
            let (_, refused) = lab.says(&format!("ping -M do -c 1 -W 1 -s {most} {address}"));
            assert!(refused.contains("too long"), "{refused}");
            let (arrives, said) = lab.says(&format!("ping -M do -c 1 -W 1 -s {fits} {address}"));
            assert!(arrives, "{said}");
            // In fragments, once the other host has found out for its own way.
            eventually(10, || lab.says(&format!("ping -M dont -c 1 -W 1 -s {most} {address}")).0);
            lab.datagram_arrives(address, most as usize);
        }
    }
}

#[test]
fn a_path_that_shrinks_and_grows_is_followed_under_a_stream() {
    for (sealed, ipv6, room) in WAYS {
        let Some(mut lab) = Lab::new("shrink", 1500, ipv6) else { return };
        lab.start(sealed, 1420);
        let stream = lab.stream(OVERLAY[1][0]);
        stream.time(1 << 20);
        lab.finds(1420);

        lab.narrow(1370);
        thread::sleep(Duration::from_millis(100));
        let time = stream.time(1 << 20);
        assert!(time < Duration::from_secs(15), "{time:?}");
        lab.finds(1370 - room);
        assert!(lab.log(0).contains("black hole"), "{}", lab.log(0));

        lab.narrow(1500);
        lab.finds(1420);
        stream.time(1 << 20);
    }
}

#[test]
fn jumbo_links_with_a_narrow_path_between_them() {
    let Some(mut lab) = Lab::new("jumbo", 9000, false) else { return };
    lab.narrow(1500);
    lab.start(true, 8920);
    let stream = lab.stream(OVERLAY[1][0]);
    let time = stream.time(1 << 20);
    assert!(time < Duration::from_secs(3), "{time:?}");
    lab.finds(1440);
    lab.narrow(9000);
    lab.finds(8920);
    stream.time(1 << 20);
}

#[test]
fn what_the_hosts_own_interface_does_not_take_is_noticed_at_once() {
    for (sealed, ipv6, room) in WAYS {
        let Some(mut lab) = Lab::new("own", 1450, ipv6) else { return };
        lab.start(sealed, 1440);
        let stream = lab.stream(OVERLAY[1][0]);
        let time = stream.time(1 << 20);
        assert!(time < Duration::from_secs(3), "{time:?}");
        lab.finds(1450 - room);
        ip(&format!("-n {} link set wire mtu 1400", lab.hosts[0]));
        lab.finds(1400 - room);
        stream.time(1 << 20);
    }
}
