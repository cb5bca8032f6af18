//! What each step of a packet costs by itself, on one core.
//!
//! ```text
//! seal, open   a session's, by AVX-512 where the processor has it, beside the same by each library alone
//! lookup       whose a destination is, with ever more peers
//! cut, merge   a super-packet of 64 KiB, in packets of 1400 bytes
//! ```

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::IpNet;
use overmesh_core::noise::{Now, Output, PeerKeys, Peers, PrivateKey, Suite, accelerate, message_len};
use overmesh_core::offload::cut::Cut;
use overmesh_core::offload::merge::{Flow, Merged, Segment};
use overmesh_core::offload::virtio::{Header, Kind, Partial, Segments};
use overmesh_core::peers::{PeerIndex, PeerSpec, Table};
use overmesh_core::routes::Routes;
use overmesh_core::wire::ip;
use overmesh_core::wire::wireguard::{HEADER_LEN, TAG_LEN};
use overmesh_ipsec_mb::Avx512;

const MTU: usize = 1420;
const NOW: Now = Now { time: Duration::from_secs(1), unix: Duration::from_secs(1) };
/// Multiples of 16, so that no padding is sealed besides.
const SIZES: [usize; 2] = [64, 1408];

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(30)
        .without_plots();
    targets = seal, open, lookup, offload
}
criterion_main!(benches);

fn seal(criterion: &mut Criterion) {
    for suite in Suite::ALL {
        let mut group = criterion.benchmark_group(format!("seal {suite:?}"));
        for size in SIZES {
            group.throughput(Throughput::Bytes(size as u64));
            let mut pair = Pair::new(suite);
            let mut message = vec![0; message_len(size, MTU)];
            group.bench_function(BenchmarkId::new("session", size), |bencher| {
                bencher.iter(|| pair.seal(&mut message));
            });
            let mut packet = vec![0; size + TAG_LEN];
            for mut cipher in Cipher::all(suite) {
                group.bench_function(BenchmarkId::new(cipher.name(), size), |bencher| {
                    bencher.iter(|| cipher.seal(&mut packet));
                });
            }
        }
    }
}

fn open(criterion: &mut Criterion) {
    for suite in Suite::ALL {
        let mut group = criterion.benchmark_group(format!("open {suite:?}"));
        for size in SIZES {
            group.throughput(Throughput::Bytes(size as u64));
            let mut pair = Pair::new(suite);
            let mut messages = vec![vec![0; message_len(size, MTU)]; 64];
            open_all(
                &mut group,
                BenchmarkId::new("session", size),
                &mut (&mut pair, &mut messages),
                |(pair, messages)| messages.iter_mut().for_each(|message| pair.seal(message)),
                |(pair, messages), at| pair.open(&mut messages[at]),
            );
            let mut sealed = vec![vec![0; size + TAG_LEN]; 64];
            for mut cipher in Cipher::all(suite) {
                open_all(
                    &mut group,
                    BenchmarkId::new(cipher.name(), size),
                    &mut (&mut cipher, &mut sealed),
                    |(cipher, sealed)| {
                        cipher.counter = 0;
                        sealed.iter_mut().for_each(|message| cipher.seal(message));
                        cipher.counter = 0;
                    },
                    |(cipher, sealed), at| cipher.open(&mut sealed[at]),
                );
            }
        }
    }
}

/// Times the opening of 64 messages that were sealed just before: none can be opened twice.
fn open_all<T>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    state: &mut T,
    seal: impl Fn(&mut T),
    open: impl Fn(&mut T, usize),
) {
    group.bench_function(id, |bencher| {
        bencher.iter_custom(|iterations| {
            let (mut spent, mut left) = (Duration::ZERO, iterations);
            while left > 0 {
                let batch = left.min(64);
                seal(state);
                let start = Instant::now();
                (0..batch).for_each(|at| open(state, usize::try_from(at).expect("at most 64")));
                spent += start.elapsed();
                left -= batch;
            }
            spent
        });
    });
}

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    for count in [1_u32, 10, 100, 1_000, 10_000] {
        let address = |at: u32| IpAddr::from(Ipv4Addr::from(0x0a4d_0000 + at));
        let routes = Routes::new((0..count).map(|at| (IpNet::from(address(at)), at)));
        let mut at = 0;
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                at = (at + 7919) % count;
                black_box(routes.lookup(address(at)))
            });
        });
    }
}

fn offload(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("offload");
    let (packet, header) = super_packet();
    let cut = Cut::new(&packet, header).expect("a whole packet");
    let segments: Vec<_> = (0..cut.count()).map(|at| written(&cut, at)).collect();
    group.throughput(Throughput::Elements(segments.len() as u64));
    let mut room = vec![0; cut.len(0)];
    group.bench_function("cut", |bencher| {
        bencher.iter(|| (0..cut.count()).for_each(|at| cut.write(at, &mut room[..cut.len(at)])));
    });
    let mut merged = Vec::with_capacity(packet.len());
    group.bench_function("merge", |bencher| bencher.iter(|| merge(&segments, &mut merged)));
    assert_eq!(merged.len(), packet.len(), "all were merged");
}

/// 64 KB of TCP as a host leaves it.
fn super_packet() -> (Vec<u8>, Header) {
    let mut tcp = vec![7; 20 + 46 * 1360];
    tcp[12..14].copy_from_slice(&[5 << 4, 0x10]);
    let mut packet = ip::emit([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), &tcp);
    packet[9] = 6;
    let checksum = Some(Partial { start: 20, offset: 16 });
    let segments = Some(Segments { kind: Kind::Tcp4, size: 1360 });
    (packet, Header { checksum, segments, headers_len: 40 })
}

fn written(cut: &Cut, at: usize) -> Vec<u8> {
    let mut segment = vec![0; cut.len(at)];
    cut.write(at, &mut segment);
    segment
}

fn merge(segments: &[Vec<u8>], merged: &mut Vec<u8>) {
    merged.clear();
    merged.extend_from_slice(&segments[0]);
    let mut state = Merged::new(Segment::parse(&segments[0]).expect("TCP"));
    for packet in &segments[1..] {
        black_box(Flow::of(packet));
        let segment = Segment::parse(packet).expect("TCP");
        if state.take(merged, packet, &segment) {
            merged.extend_from_slice(&packet[segment.payload()..]);
        }
    }
    black_box(state.finish(merged));
}

/// Two hosts with a session.
struct Pair {
    hosts: [Peers; 2],
    peer: PeerIndex,
}

impl Pair {
    fn new(suite: Suite) -> Self {
        let _ = accelerate();
        let keys = [1, 2].map(|seed| PrivateKey::from([seed; 32]));
        let table = |at: usize| {
            let peer = PeerSpec {
                id: "far".into(),
                prefixes: vec![format!("10.77.0.{}/32", 2 - at)],
                endpoints: vec![address(1 - at).to_string()],
                keys: Some(PeerKeys { suite, ..PeerKeys::new(keys[1 - at].public()) }),
                ..PeerSpec::default()
            };
            Table::new(1, 1420, Some(keys[at].clone().into()), &[peer]).expect("a table")
        };
        let peers = |at: usize| {
            let mut counter = u8::try_from(at).expect("one of two");
            let random = move |bytes: &mut [u8]| {
                counter = counter.wrapping_add(2);
                bytes.fill(counter);
            };
            let mut peers = Peers::new(keys[at].clone(), Box::new(random));
            peers.install(table(at).keys(0), MTU, NOW);
            peers
        };
        let peer = table(0).index_of("far").expect("the only one");
        let mut pair = Self { hosts: [peers(0), peers(1)], peer };
        pair.shake_hands();
        pair
    }

    fn shake_hands(&mut self) {
        self.hosts[0].wait(self.peer, &[], NOW).expect("it has an endpoint");
        for from in [0, 1, 0] {
            while let Some(output) = self.hosts[from].poll_output() {
                if let Output::Transmit { mut message, .. } = output {
                    let taken = self.hosts[1 - from].handle_datagram(&mut message, address(from), NOW);
                    taken.expect("a handshake");
                }
            }
        }
    }

    fn seal(&mut self, message: &mut [u8]) {
        self.hosts[0].sealer(self.peer, NOW).expect("a session").seal(message);
    }

    fn open(&mut self, message: &mut [u8]) {
        black_box(self.hosts[1].handle_datagram(message, address(0), NOW).expect("not forged"));
    }
}

fn address(host: usize) -> SocketAddr {
    SocketAddr::new([192, 0, 2, u8::try_from(host).expect("one of two")].into(), 51820)
}

/// A library's own work, with a nonce per packet as any caller has it.
struct Cipher {
    key: Key,
    counter: u64,
}

enum Key {
    AwsLc(LessSafeKey),
    IpsecMb(overmesh_ipsec_mb::Key),
}

impl Cipher {
    /// By each library that this processor is fit for.
    fn all(suite: Suite) -> Vec<Self> {
        let algorithm: &Algorithm = match suite {
            Suite::ChaChaPoly => &CHACHA20_POLY1305,
            Suite::AesGcm => &AES_256_GCM,
        };
        let aws_lc = LessSafeKey::new(UnboundKey::new(algorithm, &[7; 32]).expect("a key"));
        let ipsec_mb = Avx512::detect().map(|avx512| match suite {
            Suite::ChaChaPoly => avx512.chacha20_poly1305(&[7; 32]),
            Suite::AesGcm => avx512.aes_256_gcm(&[7; 32]),
        });
        let keys = [Some(Key::AwsLc(aws_lc)), ipsec_mb.ok().map(Key::IpsecMb)];
        keys.into_iter().flatten().map(|key| Self { key, counter: 0 }).collect()
    }

    fn name(&self) -> &'static str {
        match self.key {
            Key::AwsLc(_) => "aws-lc",
            Key::IpsecMb(_) => "ipsec-mb",
        }
    }

    fn nonce(&mut self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.counter.to_le_bytes());
        self.counter += 1;
        nonce
    }

    fn seal(&mut self, message: &mut [u8]) {
        let nonce = self.nonce();
        match &self.key {
            Key::AwsLc(key) => {
                let (packet, room) = message.split_at_mut(message.len() - TAG_LEN);
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), packet).expect("not too long");
                room.copy_from_slice(tag.as_ref());
            }
            Key::IpsecMb(key) => key.seal(&nonce, &[], message),
        }
    }

    fn open(&mut self, sealed: &mut [u8]) {
        let nonce = self.nonce();
        let opened = match &self.key {
            Key::AwsLc(key) => {
                key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), sealed).is_ok()
            }
            Key::IpsecMb(key) => key.open(&nonce, &[], sealed),
        };
        assert!(black_box(opened), "not forged");
    }
}

const _: () = assert!(HEADER_LEN == 16 && SIZES[1] < MTU);
