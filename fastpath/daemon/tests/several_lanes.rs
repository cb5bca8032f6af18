//! Hosts with several lanes, joined in memory lane by lane: who carries what, and how lanes come and go.

mod support;

use std::net::IpAddr;

use overmesh_core::noise::{PeerKeys, PrivateKey};
use overmesh_core::peers::PeerSpec;
use overmesh_core::wire::ip;
use overmesh_fastpath::command::Event;
use overmesh_fastpath::engine::{Desired, Engine, EngineError};
use overmesh_io::device::{Batch, Device};
use overmesh_io::loopback::Loopback;
use support::{A, B, Memory, desired, join, peer, receive, send};

/// A host in memory and how many lanes it has.
struct Host {
    engine: Engine,
    memory: Memory,
    lanes: u32,
}

impl Host {
    fn new(local: &str, remote: &str, lanes: u32) -> Self {
        let memory = Memory::new(local, remote);
        Self { engine: Engine::new(Box::new(memory.clone())), memory, lanes }
    }

    async fn apply(&mut self, other: PeerSpec) -> Result<(), EngineError> {
        self.apply_as(Desired { lanes: self.lanes, ..desired(&[other]) }).await
    }

    async fn apply_as(&mut self, desired: Desired) -> Result<(), EngineError> {
        self.engine.apply(&desired).await.map(drop)
    }
}

fn spec_a(lanes: u32) -> PeerSpec {
    PeerSpec { lanes, ..peer("a", "10.77.0.1/32", A) }
}

fn spec_b(lanes: u32) -> PeerSpec {
    PeerSpec { lanes, ..peer("b", "10.77.0.2/32", B) }
}

/// Two hosts in a plain network, joined lane by lane as far as both have lanes.
async fn two_hosts(lanes: [u32; 2]) -> [Host; 2] {
    let mut hosts = [Host::new(A, B, lanes[0]), Host::new(B, A, lanes[1])];
    hosts[0].apply(spec_b(lanes[1])).await.unwrap();
    hosts[1].apply(spec_a(lanes[0])).await.unwrap();
    for _ in 0..lanes[0].min(lanes[1]) {
        join(hosts[0].memory.underlay(), hosts[1].memory.underlay());
    }
    hosts
}

fn packet(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let [source, destination]: [IpAddr; 2] = [source, destination].map(|text| text.parse().unwrap());
    ip::emit(source, destination, payload)
}

fn to_b(payload: &[u8]) -> Vec<u8> {
    packet("10.77.0.1", "10.77.0.2", payload)
}

fn to_a(payload: &[u8]) -> Vec<u8> {
    packet("10.77.0.2", "10.77.0.1", payload)
}

fn is_closed(end: &mut Loopback) -> bool {
    end.recv(&mut Batch::new(64, 65_535)).is_err()
}

#[tokio::test]
async fn each_lane_talks_to_the_one_of_its_number() {
    let hosts = two_hosts([3, 3]).await;
    for lane in 0..3_u8 {
        let (mut host_a, mut host_b) =
            (hosts[0].memory.queue(lane.into()), hosts[1].memory.queue(lane.into()));
        send(&mut host_a, &to_b(&[lane]));
        assert_eq!(receive(&mut host_b, 1), [to_b(&[lane])]);
        send(&mut host_b, &to_a(&[lane]));
        assert_eq!(receive(&mut host_a, 1), [to_a(&[lane])]);
    }
}

#[tokio::test]
async fn a_lane_that_the_peer_lacks_hands_over_to_one_that_it_has() {
    let hosts = two_hosts([3, 2]).await;
    let mut from_a = [0, 1, 2].map(|lane| hosts[0].memory.queue(lane));
    let mut to_host_b = [0, 1].map(|lane| hosts[1].memory.queue(lane));
    for (host_a, carrier) in from_a.iter_mut().zip([0, 1, 0]) {
        // More than a lane takes in a turn.
        let packets: Vec<_> = (0..100).map(|number| to_b(&[number; 9])).collect();
        for packet in &packets {
            send(host_a, packet);
        }
        assert_eq!(receive(&mut to_host_b[carrier], 100), packets);
    }
}

#[tokio::test]
async fn a_peer_heard_on_several_lanes_is_announced_once() {
    let hosts = two_hosts([2, 2]).await;
    let mut events = hosts[1].engine.events();
    let mut queues = [1, 0].map(|lane| [0, 1].map(|host: usize| hosts[host].memory.queue(lane)));
    for [host_a, host_b] in &mut queues {
        send(host_a, &to_b(b"hello"));
        receive(host_b, 1);
    }
    assert_eq!(events.try_recv(), Ok(Event::PeerHeard("a".into())));
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn lanes_are_added_and_removed_while_the_others_go_on() {
    let mut host = Host::new(A, B, 1);
    host.apply(spec_b(2)).await.unwrap();
    let mut first = (host.memory.queue(0), host.memory.underlay());
    for _ in 0..2 {
        host.lanes = 2;
        host.apply(spec_b(2)).await.unwrap();
        let mut second = (host.memory.queue(1), host.memory.underlay());
        for (queue, underlay) in [&mut first, &mut second] {
            send(queue, &to_b(b"hello"));
            receive(underlay, 1);
        }
        host.lanes = 1;
        host.apply(spec_b(2)).await.unwrap();
        assert!(is_closed(&mut second.0) && is_closed(&mut second.1));
        send(&mut first.0, &to_b(b"hello"));
        receive(&mut first.1, 1);
    }
}

#[tokio::test]
async fn a_change_that_one_lane_cannot_make_is_made_by_none() {
    let mut hosts = two_hosts([2, 2]).await;
    let other = [PeerSpec { prefixes: vec!["10.77.0.3/32".into()], ..spec_b(2) }];
    let mut queues = [0, 1].map(|lane| [0, 1].map(|host: usize| hosts[host].memory.queue(lane)));
    hosts[0].memory.refuse_queue("om1", 1);
    hosts[0].memory.refuse_queue("om0", 2);
    let elsewhere = Desired { interface: "om1".into(), lanes: 2, ..desired(&other) };
    let more = Desired { lanes: 3, ..desired(&other) };
    let overlapping = Desired { port: 6082, lanes: 2, ..desired(&other) };
    for (wanted, reason) in
        [(elsewhere, "om1 is refused"), (more, "om0 is refused"), (overlapping, "port 6081 on")]
    {
        let error = hosts[0].apply_as(wanted).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    for [host_a, host_b] in &mut queues {
        send(host_a, &to_b(b"as before"));
        assert_eq!(receive(host_b, 1), [to_b(b"as before")]);
    }
}

#[tokio::test]
async fn a_lost_device_of_any_lane_is_announced_and_stops_changes() {
    let mut hosts = two_hosts([2, 2]).await;
    let mut events = hosts[0].engine.events();
    drop(hosts[0].memory.queue(1));
    let event = tokio::time::timeout(support::PATIENCE, events.recv()).await.unwrap().unwrap();
    assert!(matches!(event, Event::DeviceLost { .. }));
    let other = PeerSpec { prefixes: vec![], ..spec_b(2) };
    assert!(matches!(hosts[0].apply(other).await, Err(EngineError::Stopped)));
}

/// Two hosts in a sealed network; b knows where a is only if told.
async fn sealed(lanes: [u32; 2], b_knows: bool) -> [Host; 2] {
    let keys = [1, 2].map(|seed| PrivateKey::from([seed; 32]));
    let mut hosts = [Host::new(A, B, lanes[0]), Host::new(B, A, lanes[1])];
    let mut specs = [spec_b(lanes[1]), spec_a(lanes[0])];
    if !b_knows {
        specs[1].endpoints.clear();
    }
    for (at, mut spec) in specs.into_iter().enumerate() {
        spec.keys = Some(PeerKeys::new(keys[1 - at].public()));
        let host_keys = Some(keys[at].clone().into());
        let wanted = Desired { host_keys, lanes: lanes[at], ..desired(&[spec]) };
        hosts[at].apply_as(wanted).await.unwrap();
    }
    for _ in 0..lanes[0].min(lanes[1]) {
        join(hosts[0].memory.underlay(), hosts[1].memory.underlay());
    }
    hosts
}

#[tokio::test]
async fn one_key_has_a_session_on_every_lane() {
    let hosts = sealed([2, 2], true).await;
    let mut queues = [0, 1].map(|lane| [0, 1].map(|host: usize| hosts[host].memory.queue(lane)));
    // Both at once: the initiations bear timestamps in whatever order.
    for [host_a, _] in &mut queues {
        send(host_a, &to_b(b"hello"));
    }
    for [_, host_b] in &mut queues {
        assert_eq!(receive(host_b, 1), [to_b(b"hello")]);
    }
}

#[tokio::test]
async fn a_lane_that_has_not_heard_of_the_peer_hands_over_to_the_first() {
    let hosts = sealed([2, 2], false).await;
    let (mut host_a, mut host_b) = (hosts[0].memory.host(), hosts[1].memory.host());
    send(&mut host_a, &to_b(b"here I am"));
    receive(&mut host_b, 1);
    let mut second = hosts[1].memory.queue(1);
    send(&mut second, &to_a(b"there you are"));
    assert_eq!(receive(&mut host_a, 1), [to_a(b"there you are")]);
}

#[tokio::test]
async fn a_peer_with_one_lane_hears_from_one_only() {
    let hosts = sealed([2, 1], true).await;
    let mut further = hosts[0].memory.queue(1);
    send(&mut further, &to_b(b"hello"));
    assert_eq!(receive(&mut hosts[1].memory.host(), 1), [to_b(b"hello")]);
    let mut second_port = hosts[0].memory.underlay();
    let mut batch = Batch::new(1, 65_535);
    second_port.recv(&mut batch).unwrap();
    assert!(batch.is_empty(), "the second lane does not shake hands");
}
