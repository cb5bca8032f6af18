//! Real TUN interfaces, in a network namespace of the test's own.
//!
//! Needs root and /dev/net/tun; without them each test says that it was skipped and why. What is
//! not special to TUN is tested with loopbacks.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overmesh_core::drops::DropReason;
use overmesh_core::offload::cut::Cut;
use overmesh_core::offload::virtio::{Header, Kind, Partial, Segments};
use overmesh_core::wire::ip;
use overmesh_io::device::{Batch, Device};
use overmesh_io::offloads::{Offload, Offloads};
use overmesh_io::tun::Tun;

/// Moves this thread, and the commands it runs, into a new network namespace; it ends with them.
fn isolated(test: &str) -> bool {
    if !Path::new("/dev/net/tun").exists() {
        println!("skipped {test}: needs /dev/net/tun");
        return false;
    }
    // SAFETY: only this thread moves, and it holds nothing that belongs to the old namespace.
    let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    if !moved {
        println!("skipped {test}: needs root");
    }
    moved
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}");
}

/// A packet from 10.99.0.2, which the interface routes, to the interface's own 10.99.0.1.
fn batch_to_host() -> Batch {
    let mut batch = Batch::new(64, 65_535);
    batch.push(&ip::emit([10, 99, 0, 2].into(), [10, 99, 0, 1].into(), b"hello")).unwrap();
    batch
}

#[test]
fn what_the_host_sends_can_be_read() {
    if !isolated("what_the_host_sends_can_be_read") {
        return;
    }
    let mut tun = Tun::open("om-test", 0, Arc::default()).unwrap();
    run("ip address add 10.99.0.1/24 dev om-test");
    run("ip link set om-test up");
    let socket = UdpSocket::bind("10.99.0.1:0").unwrap();
    socket.send_to(b"hello", "10.99.0.2:9").unwrap();

    let mut batch = Batch::new(64, 65_535);
    let start = Instant::now();
    let to_peer =
        |bytes: &[u8]| ip::Packet::new_checked(bytes).unwrap().destination().to_string() == "10.99.0.2";
    while !batch.packets().iter().any(|packet| to_peer(packet.bytes())) {
        assert!(start.elapsed() < Duration::from_secs(5), "waited in vain");
        tun.recv(&mut batch).unwrap();
    }
}

/// Sends 5000 bytes as datagrams of 1200, in one piece.
fn send_in_one_piece(from: &UdpSocket, to: &str) {
    let size: libc::c_int = 1200;
    // SAFETY: the kernel reads one int; `size` is one and lives through the call.
    let set = unsafe {
        libc::setsockopt(from.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const size).cast(), 4)
    };
    assert_eq!(set, 0);
    assert_eq!(from.send_to(&[7; 5000], to).unwrap(), 5000);
}

/// The next packet that is UDP to 10.99.0.2, and what is to be done to it.
fn next_to_peer(tun: &mut Tun) -> (Vec<u8>, Header) {
    let mut batch = Batch::new(64, 65_535);
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < Duration::from_secs(5), "waited in vain");
        tun.recv(&mut batch).unwrap();
        let to_peer = |bytes: &[u8]| bytes[0] == 0x45 && bytes[9] == 17 && bytes[16..20] == [10, 99, 0, 2];
        if let Some(packet) = batch.packets().iter().find(|packet| to_peer(packet.bytes())) {
            return (packet.bytes().to_vec(), packet.offload);
        }
        batch.clear();
    }
}

#[test]
fn super_packets_come_whole_and_are_taken_back() {
    if !isolated("super_packets_come_whole_and_are_taken_back") {
        return;
    }
    let offloads = Arc::new(Offloads::default());
    let mut tun = Tun::open("om-test", 0, offloads.clone()).unwrap();
    if !offloads.is_on(Offload::Uso) {
        println!("skipped super_packets_come_whole_and_are_taken_back: needs Linux 6.8.5");
        return;
    }
    run("ip address add 10.99.0.1/24 dev om-test");
    run("ip link set om-test up");
    let socket = UdpSocket::bind("10.99.0.1:9").unwrap();
    send_in_one_piece(&socket, "10.99.0.2:9");
    let (mut packet, offload) = next_to_peer(&mut tun);
    assert_eq!((packet.len(), offload.segments.unwrap().size), (5028, 1200));
    assert_eq!(Cut::new(&packet, offload).unwrap().count(), 5);

    // Turned round it comes from the peer: the sums stay the same.
    let addresses = packet[12..20].to_vec();
    packet[12..16].copy_from_slice(&addresses[4..]);
    packet[16..20].copy_from_slice(&addresses[..4]);
    let mut batch = Batch::new(1, 65_535);
    batch.push(&packet).unwrap().offload = offload;
    tun.send(&mut batch).unwrap();
    assert_eq!(batch.packets()[0].refused, None);
    assert_eq!(batch.packets()[0].bytes(), packet);
    let mut buffer = [0; 2000];
    let received = [(); 5].map(|()| socket.recv(&mut buffer).unwrap());
    assert_eq!(received, [1200, 1200, 1200, 1200, 200]);
}

#[test]
fn what_is_switched_off_does_not_come() {
    if !isolated("what_is_switched_off_does_not_come") {
        return;
    }
    for unwanted in [&[Offload::Uso][..], &[Offload::Tso, Offload::Uso]] {
        let mut tun = Tun::open("om-test", 0, Arc::new(Offloads::without(unwanted))).unwrap();
        run("ip address replace 10.99.0.1/24 dev om-test");
        run("ip link set om-test up");
        let socket = UdpSocket::bind("10.99.0.1:0").unwrap();
        send_in_one_piece(&socket, "10.99.0.2:9");
        let (packet, offload) = next_to_peer(&mut tun);
        assert_eq!((packet.len(), offload.segments), (1228, None));
    }
}

#[test]
fn a_super_packet_that_the_kernel_refuses_is_not_offered_again() {
    if !isolated("a_super_packet_that_the_kernel_refuses_is_not_offered_again") {
        return;
    }
    let offloads = Arc::new(Offloads::default());
    let mut tun = Tun::open("om-test", 0, offloads.clone()).unwrap();
    run("ip link set om-test up");
    let mut batch = batch_to_host();
    let beyond = Some(Partial { start: 60_000, offset: 0 });
    let segments = Some(Segments { kind: Kind::Tcp4, size: 1000 });
    batch.packets_mut()[0].offload = Header { checksum: beyond, segments, headers_len: 40 };
    tun.send(&mut batch).unwrap();
    assert_eq!(batch.packets()[0].refused, Some(DropReason::DeviceFailed));
    assert!(!offloads.is_on(Offload::Tso) && !tun.capabilities().takes_tcp);
}

#[test]
fn an_interface_in_use_or_of_another_kind_is_an_error_with_a_fix() {
    if !isolated("an_interface_in_use_or_of_another_kind_is_an_error_with_a_fix") {
        return;
    }
    let _first = Tun::open("om-test", 0, Arc::default()).unwrap();
    let error = Tun::open("om-test", 0, Arc::default()).unwrap_err();
    assert_eq!(error.cause, "interface om-test is in use by another process");
    let error = Tun::open("lo", 0, Arc::default()).unwrap_err();
    assert!(error.cause.starts_with("interface lo exists and is not"), "{error}");
}

/// A datagram of the peer, 10.99.0.2 port 9, to a port of the host.
fn datagram_to_host(port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    let udp = [0, 9, high, low, 0, 8, 0, 0];
    let mut packet = ip::emit([10, 99, 0, 2].into(), [10, 99, 0, 1].into(), &udp);
    packet[9] = 17;
    let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !(u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap());
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet
}

#[test]
fn what_the_host_answers_comes_from_the_queue_that_was_written_to() {
    if !isolated("what_the_host_answers_comes_from_the_queue_that_was_written_to") {
        return;
    }
    let mut queues = [0, 1].map(|queue| Tun::open("om-test", queue, Arc::default()).unwrap());
    run("ip address add 10.99.0.1/24 dev om-test");
    run("ip link set om-test up");
    // Whatever queue the kernel would choose by itself, each is the other one once.
    for queue in [0, 1, 0] {
        let socket = UdpSocket::bind("10.99.0.1:0").unwrap();
        let mut batch = Batch::new(64, 65_535);
        batch.push(&datagram_to_host(socket.local_addr().unwrap().port())).unwrap();
        queues[queue].send(&mut batch).unwrap();
        assert_eq!(socket.recv_from(&mut [0; 64]).unwrap().1.to_string(), "10.99.0.2:9");
        socket.send_to(b"answer", "10.99.0.2:9").unwrap();
        assert!(next_to_peer(&mut queues[queue]).0.ends_with(b"answer"));
    }
}

#[test]
fn a_queue_that_is_closed_leaves_the_others_what_they_have() {
    if !isolated("a_queue_that_is_closed_leaves_the_others_what_they_have") {
        return;
    }
    let offloads = Arc::new(Offloads::default());
    let mut first = Tun::open("om-test", 0, offloads.clone()).unwrap();
    let second = Tun::open("om-test", 1, offloads.clone()).unwrap();
    assert_eq!(second.capabilities(), first.capabilities());
    drop(second);
    run("ip address add 10.99.0.1/24 dev om-test");
    run("ip link set om-test up");
    if offloads.is_on(Offload::Uso) {
        send_in_one_piece(&UdpSocket::bind("10.99.0.1:0").unwrap(), "10.99.0.2:9");
        assert!(next_to_peer(&mut first).1.segments.is_some());
    }
}

#[test]
fn an_interface_with_a_single_queue_serves_one_lane_and_no_more() {
    if !isolated("an_interface_with_a_single_queue_serves_one_lane_and_no_more") {
        return;
    }
    run("ip tuntap add om-test mode tun");
    let _first = Tun::open("om-test", 0, Arc::default()).unwrap();
    let error = Tun::open("om-test", 1, Arc::default()).unwrap_err().to_string();
    assert!(error.starts_with("interface om-test has a single queue, and every lane"), "{error}");
}

#[test]
fn an_interface_that_is_down_refuses_and_a_deleted_one_is_lost() {
    if !isolated("an_interface_that_is_down_refuses_and_a_deleted_one_is_lost") {
        return;
    }
    let mut tun = Tun::open("om-test", 0, Arc::default()).unwrap();
    let mut batch = batch_to_host();
    tun.send(&mut batch).unwrap();
    assert_eq!(batch.packets()[0].refused, Some(DropReason::DeviceDown));

    run("ip link set om-test up");
    tun.send(&mut batch).unwrap();
    assert_eq!(batch.packets()[0].refused, None);

    run("ip link delete om-test");
    assert!(tun.send(&mut batch).is_err());
    batch.clear();
    assert!(tun.recv(&mut batch).is_err());
}
