//! Real TUN interfaces, in a network namespace of the test's own.
//!
//! Needs root and /dev/net/tun; without them each test says that it was skipped and why. What is
//! not special to TUN is tested with loopbacks.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overmesh_core::drops::DropReason;
use overmesh_core::wire::ip;
use overmesh_io::device::{Batch, Device};
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
    let mut tun = Tun::open("om-test", Arc::default()).unwrap();
    run("ip address add 10.99.0.1/24 dev om-test");
    run("ip link set om-test up");
    let socket = std::net::UdpSocket::bind("10.99.0.1:0").unwrap();
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

#[test]
fn an_interface_in_use_or_of_another_kind_is_an_error_with_a_fix() {
    if !isolated("an_interface_in_use_or_of_another_kind_is_an_error_with_a_fix") {
        return;
    }
    let _first = Tun::open("om-test", Arc::default()).unwrap();
    let error = Tun::open("om-test", Arc::default()).unwrap_err();
    assert_eq!(error.cause, "interface om-test is in use by another process");
    let error = Tun::open("lo", Arc::default()).unwrap_err();
    assert!(error.cause.starts_with("interface lo exists and is not"), "{error}");
}

#[test]
fn an_interface_that_is_down_refuses_and_a_deleted_one_is_lost() {
    if !isolated("an_interface_that_is_down_refuses_and_a_deleted_one_is_lost") {
        return;
    }
    let mut tun = Tun::open("om-test", Arc::default()).unwrap();
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
