//! Two lanes joined in memory carry packets both ways, through changes of the table and devices.

mod support;

use std::net::IpAddr;
use std::time::Duration;

use overmesh_core::wire::{control, geneve, ip};
use overmesh_fastpath::command::Event;
use overmesh_fastpath::engine::{Engine, EngineError};
use overmesh_io::device::{Batch, Device};
use overmesh_io::fault::Faulty;
use overmesh_io::loopback::Loopback;
use support::{A, B, Memory, PATIENCE, desired, eventually, join, peer, receive, send};
use tokio::time::timeout;

/// Two hosts with their engines, and the ends that the hosts' kernels would have.
struct Pair {
    a: Engine,
    b: Engine,
    memory: [Memory; 2],
    host_a: Loopback,
    host_b: Loopback,
}

async fn two_hosts() -> Pair {
    let memory = [Memory::new(A, B), Memory::new(B, A)];
    let [mut a, mut b] = memory.clone().map(|memory| Engine::new(Box::new(memory)));
    a.apply(&desired(&[peer("b", "10.77.0.2/32", B)])).await.unwrap();
    b.apply(&desired(&[peer("a", "10.77.0.1/32", A)])).await.unwrap();
    join(memory[0].underlay(), memory[1].underlay());
    let [host_a, host_b] = [memory[0].host(), memory[1].host()];
    Pair { a, b, memory, host_a, host_b }
}

fn packet(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let [source, destination]: [IpAddr; 2] = [source, destination].map(|text| text.parse().unwrap());
    ip::emit(source, destination, payload)
}

#[tokio::test]
async fn packets_cross_unchanged_both_ways() {
    let mut pair = two_hosts().await;
    for number in 0..100_u8 {
        let there = packet("10.77.0.1", "10.77.0.2", &[number; 1400]);
        send(&mut pair.host_a, &there);
        assert_eq!(receive(&mut pair.host_b, 1), [there]);
        let back = packet("10.77.0.2", "10.77.0.1", &[number; 9]);
        send(&mut pair.host_b, &back);
        assert_eq!(receive(&mut pair.host_a, 1), [back]);
    }
}

#[tokio::test]
async fn a_probe_is_answered_by_the_other_lane() {
    let pair = two_hosts().await;
    for size in [0, 1400, control::MAX_SIZE] {
        let echo = pair.a.probe("b", size).unwrap();
        assert_eq!(echo.endpoint.to_string(), B);
        assert!(timeout(PATIENCE, echo.answer).await.unwrap().unwrap() < PATIENCE);
    }
}

#[tokio::test]
async fn an_answer_with_a_wrong_token_is_no_answer() {
    let memory = Memory::new(A, B);
    let mut engine = Engine::new(Box::new(memory.clone()));
    engine.apply(&desired(&[peer("b", "10.77.0.2/32", B)])).await.unwrap();
    let mut underlay = memory.underlay();
    let mut echo = engine.probe("b", 0).unwrap();

    let mut answer = receive(&mut underlay, 1).remove(0);
    control::into_reply(&mut answer[geneve::HEADER_LEN..]);
    let last = answer.len() - 1;
    answer[last] ^= 1;
    send(&mut underlay, &answer);
    assert!(timeout(Duration::from_millis(50), &mut echo.answer).await.is_err());

    answer[last] ^= 1;
    send(&mut underlay, &answer);
    assert!(timeout(PATIENCE, echo.answer).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_probe_that_cannot_be_is_refused() {
    let memory = Memory::new(A, B);
    let mut engine = Engine::new(Box::new(memory));
    assert!(matches!(engine.probe("b", 0), Err(EngineError::NotApplied)));
    let silent = overmesh_core::peers::PeerSpec { endpoints: vec![], ..peer("b", "10.77.0.2/32", B) };
    engine.apply(&desired(&[silent])).await.unwrap();
    assert!(matches!(engine.probe("b", 0), Err(EngineError::NoEndpoint(_))));
    assert!(matches!(engine.probe("c", 0), Err(EngineError::UnknownPeer(_))));
    assert!(matches!(engine.probe("b", control::MAX_SIZE + 1), Err(EngineError::ProbeTooBig(_))));
}

#[tokio::test]
async fn the_table_changes_under_traffic() {
    let mut pair = two_hosts().await;
    let there = packet("10.77.0.1", "10.77.0.2", b"first");
    send(&mut pair.host_a, &there);
    receive(&mut pair.host_b, 1);

    let wider = [peer("b", "10.77.0.2/32", B), peer("c", "10.77.0.3/32", B)];
    assert!(pair.a.apply(&desired(&wider)).await.unwrap().changed);
    pair.b.apply(&desired(&[peer("a", "10.77.0.0/24", A)])).await.unwrap();
    let there = packet("10.77.0.1", "10.77.0.3", b"to c");
    send(&mut pair.host_a, &there);
    assert_eq!(receive(&mut pair.host_b, 1), [there]);
}

#[tokio::test]
async fn a_changed_interface_is_reopened_and_the_port_kept() {
    let mut pair = two_hosts().await;
    let renamed = overmesh_fastpath::engine::Desired {
        interface: "om1".into(),
        ..desired(&[peer("b", "10.77.0.2/32", B)])
    };
    assert!(pair.a.apply(&renamed).await.unwrap().changed);
    let mut host_a = pair.memory[0].host();
    let there = packet("10.77.0.1", "10.77.0.2", b"from om1");
    send(&mut host_a, &there);
    assert_eq!(receive(&mut pair.host_b, 1), [there]);
}

#[tokio::test]
async fn a_bad_underlay_costs_packets_and_nothing_else() {
    let memory = [Memory::new(A, B), Memory::new(B, A)];
    let [mut a, mut b] = memory.clone().map(|memory| Engine::new(Box::new(memory)));
    a.apply(&desired(&[peer("b", "10.77.0.2/32", B)])).await.unwrap();
    b.apply(&desired(&[peer("a", "10.77.0.1/32", A)])).await.unwrap();
    let faults = "loss=0.1,duplicate=0.2,reorder=0.2,corrupt=0.5,seed=7".parse().unwrap();
    join(memory[0].underlay(), Faulty::new(memory[1].underlay(), faults));
    let (mut host_a, mut host_b) = (memory[0].host(), memory[1].host());

    let there = packet("10.77.0.1", "10.77.0.2", &[0; 9]);
    let mut arrived = Batch::new(4096, 65_535);
    for _ in 0..2000 {
        send(&mut host_a, &there);
        std::thread::sleep(Duration::from_micros(100)); // the queues between are short
        host_b.recv(&mut arrived).unwrap();
    }
    eventually(|| {
        host_b.recv(&mut arrived).unwrap();
        arrived.packets().len() > 500
    });
    for packet in arrived.packets() {
        let packet = ip::Packet::new_checked(packet.bytes()).unwrap();
        assert_eq!(packet.source().to_string(), "10.77.0.1");
    }
}

#[tokio::test]
async fn a_peer_is_announced_once() {
    let mut pair = two_hosts().await;
    let mut events = pair.b.events();
    for _ in 0..3 {
        send(&mut pair.host_a, &packet("10.77.0.1", "10.77.0.2", b"hello"));
    }
    receive(&mut pair.host_b, 3);
    assert_eq!(events.try_recv(), Ok(Event::PeerHeard("a".into())));
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn a_lost_device_is_announced_and_ends_the_lane() {
    let mut pair = two_hosts().await;
    let mut events = pair.a.events();
    drop(pair.host_a);
    let event = timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
    assert!(matches!(event, Event::DeviceLost { device, .. } if device == "loopback"));
    let other = desired(&[peer("b", "10.77.0.9/32", B)]);
    assert!(matches!(pair.a.apply(&other).await, Err(EngineError::Stopped)));
}
