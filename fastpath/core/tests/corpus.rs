//! Replays the fuzzing corpus on a stable compiler, with random changes to what is in it.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use overmesh_core::fuzz::TARGETS;
use overmesh_core::offload::cut::Cut;
use overmesh_core::offload::virtio::{Header, Kind, Partial, Segments};
use overmesh_core::wire::{control, geneve, ip, wireguard};
use proptest::prelude::*;

/// Changed inputs a target; `MUTATIONS` in the environment sets another number.
const MUTATIONS: u64 = 20_000;
/// Targets that make handshakes or tables get this part of them.
const SLOW: (&[&str], u64) = (&["sealed", "session", "changes"], 40);

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(folder(target)).unwrap_or_else(|error| panic!("corpus of {target}: {error}"));
    let mut corpus: Vec<_> = files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    corpus.sort();
    assert!(!corpus.is_empty(), "the corpus of {target} is empty");
    corpus
}

#[test]
fn the_corpus_breaks_no_promise() {
    for (name, target) in TARGETS {
        for bytes in corpus(name) {
            target(&bytes);
        }
    }
}

#[test]
fn changes_to_the_corpus_break_no_promise() {
    let mutations = std::env::var("MUTATIONS").map_or(MUTATIONS, |count| count.parse().unwrap());
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        let mut dice = Dice(1);
        let part = if SLOW.0.contains(&name) { SLOW.1 } else { 1 };
        for _ in 0..mutations / part {
            let mut bytes = corpus[dice.below(corpus.len())].clone();
            for _ in 0..=dice.below(4) {
                change(&mut bytes, &mut dice);
            }
            target(&bytes);
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_break_no_promise(bytes: Vec<u8>) {
        for (_, target) in TARGETS {
            target(&bytes);
        }
    }
}

/// One of the changes that break parsers: a byte, a cut, a repeat, an extreme.
fn change(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let at = dice.below(bytes.len() + 1);
    match dice.below(4) {
        0 => bytes.truncate(at),
        1 => bytes.extend_from_within(at..),
        _ if at == bytes.len() => bytes.push(dice.byte()),
        2 => bytes[at] = dice.byte(),
        _ => bytes[at] = [0, 0x7f, 0x80, 0xff][dice.below(4)],
    }
    bytes.truncate(4096);
}

/// `SplitMix64`: small, and the same on every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

#[test]
#[ignore = "writes files: run it when a wire format changes"]
fn write_the_seeds() {
    let [one_v4, two_v4] = [[10, 77, 0, 1], [10, 77, 0, 2]].map(IpAddr::from);
    let [one_v6, two_v6] = ["fd00::1", "fd00::2"].map(|text| text.parse::<IpAddr>().unwrap());
    let to_two = [ip::emit(one_v4, two_v4, b"v4"), ip::emit(one_v6, two_v6, b"v6")];
    let from_two = [ip::emit(two_v4, one_v4, b"v4"), ip::emit(two_v6, one_v6, b"v6")];
    let v4 = [&geneve::emit(42, geneve::IPV4), from_two[0].as_slice()].concat();
    let v6 = [&geneve::emit(42, geneve::IPV6), from_two[1].as_slice()].concat();
    let options = [&[1], &v4[1..geneve::HEADER_LEN], &[0; 4], &v4[geneve::HEADER_LEN..]].concat();
    let request = control::emit(control::Kind::Request, 42, 7, 32);
    let mut reply = request.clone();
    control::into_reply(&mut reply[geneve::HEADER_LEN..]);

    for target in ["ip", "outbound"] {
        write(target, "v4", &to_two[0]);
        write(target, "v6", &to_two[1]);
    }
    for target in ["geneve", "inbound"] {
        write(target, "v4", &v4);
        write(target, "v6", &v6);
        write(target, "options", &options);
        write(target, "request", &request);
        write(target, "reply", &reply);
    }
    write("control", "request", &request[geneve::HEADER_LEN..]);
    write("control", "reply", &reply[geneve::HEADER_LEN..]);
    let data = wireguard::emit_data(wireguard::Data { receiver: 1, counter: 2 });
    write("sealed", "initiation", &wireguard::emit_initiation(1, &[3; wireguard::NOISE_INITIATION_LEN]));
    write("sealed", "response", &wireguard::emit_response(1, 2, &[3; wireguard::NOISE_RESPONSE_LEN]));
    write("sealed", "cookie", &wireguard::emit_cookie_reply(1, &[2; 24], &[3; 32]));
    write("sealed", "data", &[data.as_slice(), &[0; 48]].concat());
    write_scripts();
    let (last, more) = (0, 1);
    let changes =
        [more, 0, 1, 0, more, 1, 1, 33, last, 2, 5, 66, last, 0, 0, 0, more, 1, 129, 3, last, 2, 9, 35];
    write("changes", "plain", &[&[0], &changes[..]].concat());
    write("changes", "sealed", &[&[1], &changes[..]].concat());
    for (name, source, destination) in [("v4", one_v4, two_v4), ("v6", one_v6, two_v6)] {
        write_super_packets(name, source, destination);
    }
}

/// Scripts of `session`, by the numbers of its steps.
fn write_scripts() {
    let (send, deliver, settle, lose, duplicate, change, sign) = ([0, 0, 9], 2, [4, 0], 5, 6, 7, 9);
    let (forge, initiate, roam, wear, restart, pass) = (10, 11, 12, 13, [14, 0], 15);
    let connected = [send, [0, 1, 200]].concat().into_iter().chain(settle).collect::<Vec<u8>>();
    write("session", "traffic", &[&connected[..], &send, &[deliver, 0, 0], &[0, 1, 0], &settle].concat());
    write("session", "replay", &[&connected[..], &send, &[duplicate, 0, 0], &settle].concat());
    let resigned = [change, 0, 0, 90, 1, sign, 0, 0];
    write("session", "changed", &[&send[..], &resigned, &settle, &connected].concat());
    write("session", "lost", &[&send[..], &[lose, 0, 0], &[pass, 0, 120], &settle].concat());
    write("session", "forged", &[&send[..], &[forge, 1], &[3; 40], &settle].concat());
    write("session", "impostor", &[&connected[..], &[initiate, 0, 7, 7], &settle, &connected].concat());
    write("session", "restart", &[&connected[..], &restart, &connected, &[roam, 0, 9], &connected].concat());
    write(
        "session",
        "worn",
        &[&connected[..], &[wear, 0, 3], &connected, &[wear, 0, 0], &connected].concat(),
    );
}

/// Two segments of TCP and two of UDP, to be cut and to be merged.
fn write_super_packets(name: &str, source: IpAddr, destination: IpAddr) {
    let tcp = [&[0, 80, 1, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 16, 1, 0, 0, 0, 0, 0], &[7; 40][..]].concat();
    let udp = [&[0, 53, 0, 53, 7, 0xd8, 0, 0], &[7; 2000][..]].concat();
    let start = if source.is_ipv4() { 20 } else { 40 };
    let tcp_kind = if source.is_ipv4() { Kind::Tcp4 } else { Kind::Tcp6 };
    for (protocol, kind, offset, size, transport) in
        [(6, tcp_kind, 16, 20, tcp), (17, Kind::Udp, 6, 1000, udp)]
    {
        let mut packet = ip::emit(source, destination, &transport);
        packet[if source.is_ipv4() { 9 } else { 6 }] = protocol;
        let header = Header {
            checksum: Some(Partial { start, offset }),
            segments: Some(Segments { kind, size }),
            headers_len: 0,
        };
        write("cut", &format!("{name}-{protocol}"), &[&header.emit(), packet.as_slice()].concat());

        let cut = Cut::new(&packet, header).unwrap();
        let segments = [0, 1].map(|at| {
            let mut segment = vec![0; cut.len(at)];
            cut.write(at, &mut segment);
            segment
        });
        let len = u16::try_from(segments[0].len()).unwrap().to_be_bytes();
        write("merge", &format!("{name}-{protocol}"), &[len.to_vec(), segments.concat()].concat());
    }
}

fn write(target: &str, name: &str, seed: &[u8]) {
    fs::create_dir_all(folder(target)).unwrap();
    fs::write(folder(target).join(name), seed).unwrap();
}
