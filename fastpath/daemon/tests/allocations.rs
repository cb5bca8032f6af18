//! A lane allocates nothing while it carries packets, in either direction.
#![allow(unsafe_code, reason = "an allocator that counts")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::{Instant, SystemTime};
use std::{io, iter};

use overmesh_core::noise::{Now, Output, PeerKeys, Peers, PrivateKey, Suite, accelerate, message_len};
use overmesh_core::offload::cut::Cut;
use overmesh_core::offload::virtio::{Header, Kind, Partial, Segments};
use overmesh_core::peers::{PeerIndex, PeerSpec, Table};
use overmesh_core::pmtu::Pace;
use overmesh_core::tunnel::Tunnel;
use overmesh_core::wire::wireguard::HEADER_LEN;
use overmesh_core::wire::{geneve, ip};
use overmesh_fastpath::command::Command;
use overmesh_fastpath::lane;
use overmesh_io::device::{Batch, Capabilities, Device};
use overmesh_io::poll::Waker;
use support::{A, B, PATIENCE, peer};
use tokio::sync::broadcast;

/// Turns of the lane until everything is allocated that is kept, and then those that count.
const WARM_UP: u64 = 10;
const TURNS: u64 = 200;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: all is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts turns, and says at the end how often the lane allocated in those that count.
struct Meter {
    turns: u64,
    before: u64,
    done: mpsc::Sender<u64>,
}

impl Meter {
    /// Another turn; false after the last.
    fn turn(&mut self) -> bool {
        self.turns += 1;
        if self.turns == WARM_UP {
            self.before = ALLOCATIONS.get();
        }
        if self.turns == WARM_UP + TURNS {
            let _ = self.done.send(ALLOCATIONS.get() - self.before);
        }
        self.turns < WARM_UP + TURNS
    }
}

/// Gives the same packet again and again.
struct Source {
    capabilities: Capabilities,
    ready: Waker,
    packet: Vec<u8>,
    offload: Header,
    segment_len: usize,
    meter: Meter,
}

impl Device for Source {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.ready.as_fd()]
    }

    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        if !self.meter.turn() {
            self.ready.reset();
        }
        while let Some(packet) = batch.push(&self.packet) {
            packet.offload = self.offload;
            packet.segment_len = self.segment_len;
            packet.address = B.parse().unwrap();
        }
        Ok(())
    }

    fn send(&mut self, _: &mut Batch) -> io::Result<()> {
        Ok(())
    }
}

/// Takes everything, and counts the packets or runs that it took.
struct Sink {
    capabilities: Capabilities,
    taken: Arc<AtomicU64>,
}

impl Device for Sink {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![]
    }

    fn recv(&mut self, _: &mut Batch) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, batch: &mut Batch) -> io::Result<()> {
        self.taken.fetch_add(batch.packets().len() as u64, Relaxed);
        Ok(())
    }
}

fn capabilities() -> Capabilities {
    Capabilities { max_segments: 64, takes_tcp: true, takes_udp: true, ..Capabilities::plain("test", 65_535) }
}

/// A meter, and where it says what it has counted.
fn meter() -> (Meter, mpsc::Receiver<u64>) {
    let (done, allocations) = mpsc::channel();
    (Meter { turns: 0, before: 0, done }, allocations)
}

/// Runs a lane between two devices, until the meter in one of them has counted.
fn run(
    inner: Box<dyn Device>,
    outer: Box<dyn Device>,
    table: Table,
    allocations: &mpsc::Receiver<u64>,
) -> u64 {
    let tunnel = Arc::new(Tunnel::new(Arc::new(table), None));
    let events = broadcast::Sender::new(16);
    let (lane, thread) =
        lane::spawn(inner, outer, tunnel, iter::empty(), Instant::now(), Pace::default(), events).unwrap();
    let allocations = allocations.recv_timeout(PATIENCE).unwrap();
    lane.tell(Command::Stop);
    thread.join().unwrap();
    allocations
}

/// A peer to whom no probes of the path are sent that would be among what is counted.
fn unprobed(peer: PeerSpec) -> PeerSpec {
    PeerSpec { stock: true, ..peer }
}

/// How often the lane allocated in a plain network, and how much was sent in one piece.
fn run_plain(packet: Vec<u8>, offload: Header, segment_len: usize, outbound: bool) -> (u64, u64) {
    let (source, sink, allocations, taken) = source_and_sink(packet, offload, segment_len);
    let (inner, outer) = if outbound { (source, sink) } else { (sink, source) };
    let peers = [peer("a", "10.77.0.1/32", A), peer("b", "10.77.0.2/32", B)].map(unprobed);
    let table = Table::new(42, 1420, None, &peers).unwrap();
    (run(inner, outer, table, &allocations), taken.load(Relaxed))
}

type Ends = (Box<dyn Device>, Box<dyn Device>, mpsc::Receiver<u64>, Arc<AtomicU64>);

fn source_and_sink(packet: Vec<u8>, offload: Header, segment_len: usize) -> Ends {
    let ((meter, allocations), taken) = (meter(), Arc::new(AtomicU64::new(0)));
    let source = Source { capabilities: capabilities(), ready: awake(), packet, offload, segment_len, meter };
    let sink = Sink { capabilities: capabilities(), taken: taken.clone() };
    (Box::new(source), Box::new(sink), allocations, taken)
}

fn awake() -> Waker {
    let ready = Waker::new().unwrap();
    ready.wake();
    ready
}

/// A UDP super-packet with `payload` zeros, its checksum left to be made, from one host to the other.
fn super_packet(source: [u8; 4], destination: [u8; 4], payload: usize) -> (Vec<u8>, Header) {
    let len = u16::try_from(8 + payload).unwrap().to_be_bytes();
    let udp = [&[0, 53, 0, 53], &len[..], &[0, 0], &vec![0; payload]].concat();
    let mut packet = ip::emit(source.into(), destination.into(), &udp);
    packet[9] = 17;
    let checksum = Some(Partial { start: 20, offset: 6 });
    let segments = Some(Segments { kind: Kind::Udp, size: 1200 });
    (packet, Header { checksum, segments, headers_len: 28 })
}

#[test]
fn cutting_and_gathering_allocate_nothing() {
    let (packet, offload) = super_packet([10, 77, 0, 1], [10, 77, 0, 2], 60_000);
    let (allocations, runs) = run_plain(packet, offload, 0, true);
    assert_eq!(allocations, 0);
    assert!(runs > TURNS);
}

#[test]
fn merging_and_delivering_allocate_nothing() {
    let (packet, offload) = super_packet([10, 77, 0, 2], [10, 77, 0, 1], 48_000);
    let cut = Cut::new(&packet, offload).unwrap();
    let mut datagrams = vec![];
    for at in 0..cut.count() {
        datagrams.extend(geneve::emit(42, geneve::IPV4));
        let begin = datagrams.len();
        datagrams.resize(begin + cut.len(at), 0);
        cut.write(at, &mut datagrams[begin..]);
    }
    let (allocations, packets) = run_plain(datagrams, Header::default(), 8 + cut.len(0), false);
    assert_eq!(allocations, 0);
    let received = TURNS * 4 * cut.count() as u64;
    assert!(packets < received / 10, "{packets} packets for {received}: they are merged");
}

/// The underlay of a sealed network with peer b at its other end, which answers handshakes; and, if it
/// has a run of packets to send, begins one and then sends the run again and again, each time sealed.
struct Far {
    capabilities: Capabilities,
    ready: Waker,
    peers: Peers,
    peer: PeerIndex,
    clock: Instant,
    /// Handshake messages to the lane.
    messages: Vec<Vec<u8>>,
    run: Option<Run>,
    taken: Arc<AtomicU64>,
}

/// Data messages, not sealed yet.
struct Run {
    bytes: Vec<u8>,
    segment_len: usize,
    meter: Meter,
}

const SECRETS: [[u8; 32]; 2] = [[1; 32], [2; 32]];

fn keys(of: usize, suite: Suite) -> PeerKeys {
    PeerKeys { suite, ..PeerKeys::new(PrivateKey::from(SECRETS[of]).public()) }
}

impl Far {
    fn new(suite: Suite, run: Option<Run>) -> Self {
        let random = |bytes: &mut [u8]| getrandom::fill(bytes).unwrap();
        let mut peers = Peers::new(PrivateKey::from(SECRETS[1]), Box::new(random));
        let clock = Instant::now();
        peers.install([(keys(0, suite), Some(A.parse().unwrap()))], 1420, now_on(clock));
        let Some(Output::Moved(peer, _)) = peers.poll_output() else { panic!("the peer is installed") };
        let ready = awake();
        let taken = Arc::default();
        let mut far =
            Self { capabilities: capabilities(), ready, peers, peer, clock, messages: vec![], run, taken };
        if far.run.is_some() {
            far.peers.wait(peer, &[], now_on(clock)).unwrap();
        }
        far.collect();
        far
    }

    fn collect(&mut self) {
        while let Some(output) = self.peers.poll_output() {
            if let Output::Transmit { message, .. } = output {
                self.messages.push(message);
                self.ready.wake();
            }
        }
    }
}

impl Device for Far {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.ready.as_fd()]
    }

    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        let source: SocketAddr = B.parse().unwrap();
        for message in self.messages.drain(..) {
            batch.push(&message).unwrap().address = source;
        }
        let sealer = self.peers.sealer(self.peer, now_on(self.clock));
        let (Some(run), Some(mut sealer)) = (&mut self.run, sealer) else {
            self.ready.reset();
            return Ok(());
        };
        if !run.meter.turn() {
            self.ready.reset();
        }
        while let Some(packet) = batch.push(&run.bytes) {
            packet.address = source;
            packet.segment_len = run.segment_len;
            (0..packet.datagram_count()).for_each(|at| sealer.seal(packet.datagram_mut(at)));
        }
        Ok(())
    }

    fn send(&mut self, batch: &mut Batch) -> io::Result<()> {
        const DATA: u8 = 4;
        for packet in batch.packets() {
            if packet.bytes()[0] == DATA {
                self.taken.fetch_add(1, Relaxed);
                continue;
            }
            let mut message = packet.bytes().to_vec();
            self.peers.handle_datagram(&mut message, A.parse().unwrap(), now_on(self.clock)).unwrap();
            self.collect();
        }
        Ok(())
    }
}

fn now_on(clock: Instant) -> Now {
    Now { time: clock.elapsed(), unix: SystemTime::UNIX_EPOCH.elapsed().unwrap() }
}

fn sealed_table(suite: Suite) -> Table {
    let far = PeerSpec { keys: Some(keys(1, suite)), ..peer("b", "10.77.0.2/32", B) };
    Table::new(42, 1420, Some(PrivateKey::from(SECRETS[0]).into()), &[unprobed(far)]).unwrap()
}

/// All suites; then again by AVX-512, if there is any, which this process keeps to from then on.
fn suites() -> impl Iterator<Item = Suite> {
    let accelerated = std::iter::once_with(accelerate).flatten().flat_map(|()| Suite::ALL);
    Suite::ALL.into_iter().chain(accelerated)
}

#[test]
fn sealing_allocates_nothing() {
    for suite in suites() {
        let (packet, offload) = super_packet([10, 77, 0, 1], [10, 77, 0, 2], 60_000);
        let (source, _, allocations, _) = source_and_sink(packet, offload, 0);
        let far = Far::new(suite, None);
        let taken = far.taken.clone();
        assert_eq!(run(source, Box::new(far), sealed_table(suite), &allocations), 0, "{suite:?}");
        assert!(taken.load(Relaxed) > TURNS);
    }
}

#[test]
fn opening_allocates_nothing() {
    for suite in suites() {
        let (packet, offload) = super_packet([10, 77, 0, 2], [10, 77, 0, 1], 48_000);
        let cut = Cut::new(&packet, offload).unwrap();
        let mut bytes = vec![];
        for at in 0..cut.count() {
            let begin = bytes.len();
            bytes.resize(begin + message_len(cut.len(at), 1420), 0);
            cut.write(at, &mut bytes[begin + HEADER_LEN..][..cut.len(at)]);
        }
        let (meter, allocations) = meter();
        let far = Far::new(suite, Some(Run { bytes, segment_len: message_len(cut.len(0), 1420), meter }));
        let (_, sink, _, taken) = source_and_sink(vec![], Header::default(), 0);
        assert_eq!(run(sink, Box::new(far), sealed_table(suite), &allocations), 0, "{suite:?}");
        let received = TURNS * 4 * cut.count() as u64;
        let packets = taken.load(Relaxed);
        assert!((1..received / 10).contains(&packets), "{packets} packets for {received}: they are merged");
    }
}
