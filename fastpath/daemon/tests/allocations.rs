//! A lane allocates nothing while it carries packets, in either direction.
#![allow(unsafe_code, reason = "an allocator that counts")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::Instant;
use std::{io, iter};

use overmesh_core::offload::virtio::{Header, Kind, Partial, Segments};
use overmesh_core::peers::Table;
use overmesh_core::tunnel::Tunnel;
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

/// Gives the same packet again and again, and says at the end how often the lane allocated.
struct Source {
    capabilities: Capabilities,
    ready: Waker,
    packet: Vec<u8>,
    offload: Header,
    segment_len: usize,
    turns: u64,
    before: u64,
    done: mpsc::Sender<u64>,
}

impl Device for Source {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.ready.as_fd()]
    }

    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        self.turns += 1;
        if self.turns == WARM_UP {
            self.before = ALLOCATIONS.get();
        }
        if self.turns == WARM_UP + TURNS {
            let _ = self.done.send(ALLOCATIONS.get() - self.before);
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

/// How often the lane allocated, and how much was sent in one piece.
fn run(packet: Vec<u8>, offload: Header, segment_len: usize, outbound: bool) -> (u64, u64) {
    let (done, allocations) = mpsc::channel();
    let ready = Waker::new().unwrap();
    ready.wake();
    let taken = Arc::new(AtomicU64::new(0));
    let source: Box<dyn Device> = Box::new(Source {
        capabilities: capabilities(),
        ready,
        packet,
        offload,
        segment_len,
        turns: 0,
        before: 0,
        done,
    });
    let sink: Box<dyn Device> = Box::new(Sink { capabilities: capabilities(), taken: taken.clone() });
    let (inner, outer) = if outbound { (source, sink) } else { (sink, source) };
    let peers = [peer("a", "10.77.0.1/32", A), peer("b", "10.77.0.2/32", B)];
    let tunnel = Arc::new(Tunnel::new(Arc::new(Table::new(42, 1420, None, &peers).unwrap()), None));
    let events = broadcast::Sender::new(16);
    let (lane, thread) = lane::spawn(inner, outer, tunnel, iter::empty(), Instant::now(), events).unwrap();
    let allocations = allocations.recv_timeout(PATIENCE).unwrap();
    lane.tell(Command::Stop);
    thread.join().unwrap();
    (allocations, taken.load(Relaxed))
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
    let (allocations, runs) = run(packet, offload, 0, true);
    assert_eq!(allocations, 0);
    assert!(runs > TURNS);
}

#[test]
fn merging_and_delivering_allocate_nothing() {
    let (packet, offload) = super_packet([10, 77, 0, 2], [10, 77, 0, 1], 48_000);
    let cut = overmesh_core::offload::cut::Cut::new(&packet, offload).unwrap();
    let mut datagrams = vec![];
    for at in 0..cut.count() {
        datagrams.extend(geneve::emit(42, geneve::IPV4));
        let begin = datagrams.len();
        datagrams.resize(begin + cut.len(at), 0);
        cut.write(at, &mut datagrams[begin..]);
    }
    let (allocations, packets) = run(datagrams, Header::default(), 8 + cut.len(0), false);
    assert_eq!(allocations, 0);
    let received = TURNS * 4 * cut.count() as u64;
    assert!(packets < received / 10, "{packets} packets for {received}: they are merged");
}
