//! The contract with the agent, spoken by a client over a real unix socket.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use overmesh_core::noise::PrivateKey;
use overmesh_core::wire::ip;
use overmesh_fastpath::control::Control;
use overmesh_fastpath::engine::Engine;
use overmesh_fastpath::proto::event::Body;
use overmesh_fastpath::proto::fastpath_client::FastpathClient;
use overmesh_fastpath::proto::{
    ApplyRequest, ChangeRequest, EventsRequest, Mode, Peer, ProbeRequest, ShutdownRequest, StatsReply,
    StatsRequest, Suite,
};
use overmesh_fastpath::server::Server;
use support::{A, B, Memory, eventually, join, receive, send};
use tempfile::TempDir;
use tokio::sync::{Mutex, Notify};
use tonic::Code;
use tonic::transport::Channel;

/// A fastpath in memory, served on a socket in a folder of its own.
struct Host {
    client: FastpathClient<Channel>,
    engine: Arc<Mutex<Engine>>,
    shutdown: Arc<Notify>,
    memory: Memory,
    server: Server,
    socket: PathBuf,
    _folder: TempDir,
}

async fn host(local: &str, remote: &str) -> Host {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("fastpath.sock");
    let memory = Memory::new(local, remote);
    let engine = Arc::new(Mutex::new(Engine::new(Box::new(memory.clone()))));
    let shutdown = Arc::new(Notify::new());
    let server = Server::start(&socket, Control::new(engine.clone(), shutdown.clone())).unwrap();
    let client = client(&socket).await;
    Host { client, engine, shutdown, memory, server, socket, _folder: folder }
}

async fn client(socket: &Path) -> FastpathClient<Channel> {
    FastpathClient::connect(format!("unix://{}", socket.display())).await.unwrap()
}

fn peer(id: &str, prefix: &str, endpoint: &str) -> Peer {
    Peer {
        id: id.into(),
        name: id.into(),
        prefixes: vec![prefix.into()],
        endpoints: vec![endpoint.into()],
        mode: Mode::Plain.into(),
        ..Peer::default()
    }
}

fn apply(revision: u64, peers: &[Peer]) -> ApplyRequest {
    let peers = peers.to_vec();
    let tun = "om0".into();
    ApplyRequest {
        revision,
        tun,
        mtu: 1420,
        network_number: 42,
        port: 6081,
        peers,
        ..ApplyRequest::default()
    }
}

impl Host {
    async fn reaches(&mut self, peer: &str) -> bool {
        let probe = ProbeRequest { peer: peer.into(), size: 0, timeout_ms: 5000 };
        self.client.probe(probe).await.unwrap().into_inner().answered
    }

    async fn stats(&mut self) -> StatsReply {
        self.client.stats(StatsRequest::default()).await.unwrap().into_inner()
    }

    /// Code and message of a refused apply.
    async fn refused(&mut self, request: ApplyRequest) -> (Code, String) {
        let status = self.client.apply(request).await.unwrap_err();
        (status.code(), status.message().into())
    }

    async fn refused_change(&mut self, request: ChangeRequest) -> (Code, String) {
        let status = self.client.change(request).await.unwrap_err();
        (status.code(), status.message().into())
    }
}

#[tokio::test]
async fn before_the_first_apply_it_says_so() {
    let mut host = host(A, B).await;
    let stats = host.stats().await;
    assert_eq!((stats.revision, stats.backend.as_str(), stats.listening.len()), (0, "memory", 0));
    assert_eq!(stats.pid.unsigned_abs(), std::process::id());
}

#[tokio::test]
async fn applying_the_same_twice_changes_nothing() {
    let mut host = host(A, B).await;
    let peers = [peer("b", "10.77.0.2/32", B)];
    let first = host.client.apply(apply(7, &peers)).await.unwrap().into_inner();
    assert_eq!((first.revision, first.peers, first.changed), (7, 1, true));
    let second = host.client.apply(apply(8, &peers)).await.unwrap().into_inner();
    assert_eq!((second.revision, second.peers, second.changed), (8, 1, false));

    let stats = host.stats().await;
    assert_eq!((stats.revision, stats.mtu), (8, 1420));
    assert_eq!(stats.listening, [A]);
    assert_eq!(stats.table_digest.len(), 32);
    assert_eq!((stats.peers[0].endpoint.as_str(), stats.peers[0].last_heard_ms_ago), (B, -1));
}

fn change(base: &[u8], desired: ApplyRequest, removed: &[&str]) -> ChangeRequest {
    let removed = removed.iter().map(ToString::to_string).collect();
    ChangeRequest { desired: Some(desired), removed, base: base.to_vec() }
}

#[tokio::test]
async fn a_change_comes_to_what_the_whole_would_have() {
    let [mut one, mut other] = [host(A, B).await, host(A, B).await];
    let [b, c, d] = [("b", 2), ("c", 3), ("d", 4)].map(|(id, n)| peer(id, &format!("10.77.0.{n}/32"), B));
    let first = one.client.apply(apply(1, &[b.clone(), c.clone()])).await.unwrap().into_inner();
    let moved = Peer { endpoints: vec!["192.0.2.9:6081".into()], ..c };
    let step = change(&first.table_digest, apply(2, &[moved.clone(), d.clone()]), &["b"]);
    let second = one.client.change(step).await.unwrap().into_inner();
    assert_eq!((second.revision, second.peers, second.changed), (2, 2, true));

    let whole = other.client.apply(apply(2, &[d, moved])).await.unwrap().into_inner();
    assert_eq!(second.table_digest, whole.table_digest);
    let [one, other] = [one.stats().await, other.stats().await];
    assert_eq!(one.table_digest, whole.table_digest);
    let of = |stats: &StatsReply, id: &str| stats.peers.iter().find(|peer| peer.id == id).unwrap().clone();
    for id in ["c", "d"] {
        assert_eq!(of(&one, id), of(&other, id));
    }
}

#[tokio::test]
async fn a_change_of_what_is_not_applied_is_refused_and_the_whole_is_asked_for() {
    let mut host = host(A, B).await;
    let refusal = (
        Code::FailedPrecondition,
        "what is to be changed is not what is applied. apply the whole table".to_string(),
    );
    let [b, c] = [peer("b", "10.77.0.2/32", B), peer("c", "10.77.0.3/32", B)];
    assert_eq!(host.refused_change(change(&[0; 32], apply(1, std::slice::from_ref(&b)), &[])).await, refusal);
    let base = host.client.apply(apply(1, &[b])).await.unwrap().into_inner().table_digest;
    host.client.change(change(&base, apply(2, &[c]), &[])).await.unwrap();
    for other in [&base[..], &[1], &[]] {
        assert_eq!(host.refused_change(change(other, apply(3, &[]), &["b"])).await, refusal);
    }

    let base = host.stats().await.table_digest;
    let (code, message) = host.refused_change(change(&base, apply(3, &[]), &["d"])).await;
    assert_eq!(code, Code::InvalidArgument);
    assert_eq!(message, "peer d is to go and is not there. apply the whole table");
    let (_, message) = host.refused_change(ChangeRequest { base, ..ChangeRequest::default() }).await;
    assert!(message.contains("port 0 is no UDP port"), "{message}");
    assert_eq!((host.stats().await.revision, host.stats().await.peers.len()), (2, 2));
}

#[tokio::test]
async fn statistics_come_without_peers_where_nobody_wants_them() {
    let mut host = host(A, B).await;
    host.client.apply(apply(1, &[peer("b", "10.77.0.2/32", B)])).await.unwrap();
    let all = host.stats().await;
    let stats = host.client.stats(StatsRequest { without_peers: true }).await.unwrap().into_inner();
    assert_eq!((all.peers.len(), stats.peers.len()), (1, 0));
    assert_eq!((stats.table_digest, stats.listening), (all.table_digest, all.listening));
}

#[tokio::test]
async fn a_session_outlives_changes_of_others_and_of_positions() {
    let mut hosts = [host(A, B).await, host(B, A).await];
    let stranger = |id: &str, n: u8| {
        let mode = Mode::Sealed.into();
        Peer { mode, public_key: vec![n; 32], ..peer(id, &format!("10.77.0.{n}/32"), "192.0.2.9:6081") }
    };
    let mut request = apply_sealed(1, 2, peer("b", "10.77.0.2/32", B));
    request.peers.splice(0..0, [stranger("x", 9), stranger("y", 10)]);
    let mut base = hosts[0].client.apply(request.clone()).await.unwrap().into_inner().table_digest;
    hosts[1].client.apply(apply_sealed(2, 1, peer("a", "10.77.0.1/32", A))).await.unwrap();
    join(hosts[0].memory.underlay(), hosts[1].memory.underlay());
    assert!(hosts[0].reaches("b").await);
    let connected = std::time::Instant::now();
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;

    // b takes the place of x, then y moves, goes and comes again.
    let moved = Peer { endpoints: vec![], ..stranger("y", 10) };
    let steps: [(&[Peer], &[&str]); 4] =
        [(&[], &["x"]), (&[moved], &[]), (&[], &["y"]), (&[stranger("y", 10), stranger("z", 11)], &[])];
    for (peers, removed) in steps {
        let desired = ApplyRequest { private_key: vec![1; 32], ..apply(2, peers) };
        let step = change(&base, desired, removed);
        base = hosts[0].client.change(step).await.unwrap().into_inner().table_digest;
        assert!(hosts[0].reaches("b").await && hosts[1].reaches("a").await);
        let stats = hosts[0].stats().await;
        let b = stats.peers.iter().find(|peer| peer.id == "b").unwrap();
        let age = u128::from(b.last_handshake_ms_ago.unsigned_abs());
        assert!(age + 10 >= connected.elapsed().as_millis(), "it is a new session");
    }
}

#[tokio::test]
async fn traffic_shows_in_the_statistics_and_survives_a_new_table() {
    let mut a = host(A, B).await;
    let mut b = host(B, A).await;
    let to_b = peer("b", "10.77.0.2/32", B);
    a.client.apply(apply(1, std::slice::from_ref(&to_b))).await.unwrap();
    b.client.apply(apply(1, &[peer("a", "10.77.0.1/32", A)])).await.unwrap();
    join(a.memory.underlay(), b.memory.underlay());
    let (mut host_a, mut host_b) = (a.memory.host(), b.memory.host());

    send(&mut host_a, &ip::emit([10, 77, 0, 1].into(), [10, 77, 0, 9].into(), &[]));
    send(&mut host_a, &ip::emit([10, 77, 0, 1].into(), [10, 77, 0, 2].into(), &[0; 80]));
    receive(&mut host_b, 1);
    a.client.apply(apply(2, &[peer("c", "10.77.0.3/32", "192.0.2.3:6081"), to_b])).await.unwrap();

    let stats = a.stats().await;
    assert_eq!((stats.peers[1].tx_packets, stats.peers[1].tx_bytes), (1, 100));
    assert_eq!(stats.peers[0].tx_packets, 0);
    assert_eq!(stats.drops, [("no_route".to_string(), 1)].into());
    let stats = b.stats().await;
    assert_eq!((stats.peers[0].rx_packets, stats.peers[0].rx_bytes), (1, 100));
    assert!((0..5000).contains(&stats.peers[0].last_heard_ms_ago));
}

#[tokio::test]
async fn statistics_are_of_all_lanes_and_forget_none_that_was() {
    let mut a = host(A, B).await;
    // b has two lanes: what the third is given, the first carries. Stock: nothing else is sent to it.
    let b = Peer { lanes: 2, stock: true, ..peer("b", "10.77.0.2/32", B) };
    let with_lanes = |lanes| ApplyRequest { lanes, ..apply(1, std::slice::from_ref(&b)) };
    a.client.apply(with_lanes(3)).await.unwrap();
    let stats = a.stats().await;
    let [first, second, third] = &stats.listening[..] else { panic!("{:?}", stats.listening) };
    assert_eq!([first, second, third], [A, "192.0.2.1:6082", "192.0.2.1:6083"]);

    let mut underlay = [(); 3].map(|()| a.memory.underlay());
    let mut queues = [0, 1, 2].map(|lane| a.memory.queue(lane));
    for (queue, carrier) in queues.iter_mut().zip([0, 1, 0]) {
        send(queue, &ip::emit([10, 77, 0, 1].into(), [10, 77, 0, 9].into(), &[]));
        send(queue, &ip::emit([10, 77, 0, 1].into(), [10, 77, 0, 2].into(), &[0; 80]));
        receive(&mut underlay[carrier], 1);
    }
    for lanes in [3, 1] {
        a.client.apply(with_lanes(lanes)).await.unwrap();
        let stats = a.stats().await;
        let endpoints = [B, "192.0.2.2:6082"];
        assert_eq!(stats.peers[0].endpoints, endpoints[..lanes.min(2) as usize]);
        assert_eq!((stats.lanes, stats.handed_over), (lanes, 1));
        assert_eq!((stats.peers[0].tx_packets, stats.peers[0].tx_bytes), (3, 300));
        assert_eq!(stats.drops, [("no_route".to_string(), 3)].into());
    }
}

#[tokio::test]
async fn a_changed_port_is_reopened_and_the_interface_kept() {
    let mut host = host(A, B).await;
    let peers = [peer("b", "10.77.0.2/32", B)];
    host.client.apply(apply(1, &peers)).await.unwrap();
    let (mut kernel, _closed) = (host.memory.host(), host.memory.underlay());

    let moved = ApplyRequest { port: 7000, ..apply(2, &peers) };
    assert!(host.client.apply(moved).await.unwrap().into_inner().changed);
    assert_eq!(host.stats().await.listening, ["192.0.2.1:7000"]);
    send(&mut kernel, &ip::emit([10, 77, 0, 1].into(), [10, 77, 0, 2].into(), &[]));
    receive(&mut host.memory.underlay(), 1);
}

#[tokio::test]
async fn a_refused_apply_leaves_the_previous_state_forwarding() {
    let mut host = host(A, B).await;
    host.memory.refuse("om9");
    host.client.apply(apply(1, &[peer("b", "10.77.0.2/32", B)])).await.unwrap();
    let (mut kernel, mut underlay) = (host.memory.host(), host.memory.underlay());

    let other = ApplyRequest { tun: "om9".into(), ..apply(2, &[]) };
    let refusal = (Code::FailedPrecondition, "om9 is refused. ask for another".into());
    assert_eq!(host.refused(other).await, refusal);
    let (code, message) = host.refused(apply(2, &[peer("b", "10.77.0.2/24", B)])).await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.ends_with("write 10.77.0.0/24"), "{message}");

    assert_eq!(host.stats().await.revision, 1);
    send(&mut kernel, &ip::emit([10, 77, 0, 1].into(), [10, 77, 0, 2].into(), &[]));
    receive(&mut underlay, 1);
}

#[tokio::test]
async fn what_this_build_cannot_do_is_refused_by_name() {
    let mut host = host(A, B).await;
    let with_mode = |mode: Mode| Peer { mode: mode.into(), ..peer("b", "10.77.0.2/32", B) };
    let (code, message) = host.refused(apply(1, &[with_mode(Mode::Sealed)])).await;
    assert_eq!(code, Code::InvalidArgument);
    assert_eq!(message, "peer b is sealed and has no public key. give it one");
    let short = Peer { public_key: vec![1; 31], ..with_mode(Mode::Sealed) };
    let (_, message) = host.refused(apply(1, &[short])).await;
    assert_eq!(message, "peer b: the public key has 31 bytes. a key has 32");
    let short = Peer { previous_public_key: vec![1; 33], public_key: vec![1; 32], ..with_mode(Mode::Sealed) };
    let (_, message) = host.refused(apply(1, &[short])).await;
    assert_eq!(message, "peer b: the previous public key has 33 bytes. a key has 32");
    let (_, message) = host.refused(ApplyRequest { other_private_key: vec![1; 32], ..apply(1, &[]) }).await;
    assert!(message.starts_with("the host has another private key and none of its own."), "{message}");
    let keyed = Peer { public_key: vec![1; 32], ..with_mode(Mode::Sealed) };
    let (_, message) = host.refused(apply(1, &[keyed])).await;
    assert!(message.contains("peer b has a public key, and the network is plain"), "{message}");
    let (_, message) = host.refused(apply(1, &[with_mode(Mode::Unspecified)])).await;
    assert!(message.contains("has no mode"), "{message}");
    for port in [0, 65_536] {
        let (_, message) = host.refused(ApplyRequest { port, ..apply(1, &[]) }).await;
        assert!(message.contains("is no UDP port"), "{message}");
    }
}

/// What a host with private key `own` is asked for, about one with private key `other`.
fn apply_sealed(own: u8, other: u8, peer: Peer) -> ApplyRequest {
    let public_key = PrivateKey::from([other; 32]).public().bytes().to_vec();
    let suite = Suite::Aes.into();
    let peer = Peer { mode: Mode::Sealed.into(), public_key, suite, ..peer };
    ApplyRequest { private_key: vec![own; 32], ..apply(1, &[peer]) }
}

#[tokio::test]
async fn a_sealed_peer_is_probed_and_shown() {
    let mut a = host(A, B).await;
    let mut b = host(B, A).await;
    a.client.apply(apply_sealed(1, 2, peer("b", "10.77.0.2/32", B))).await.unwrap();
    // b learns from the handshake where a is.
    let unknown = Peer { endpoints: vec![], ..peer("a", "10.77.0.1/32", A) };
    b.client.apply(apply_sealed(2, 1, unknown)).await.unwrap();
    join(a.memory.underlay(), b.memory.underlay());

    let probe = ProbeRequest { peer: "b".into(), size: 1420, timeout_ms: 5000 };
    let reply = a.client.probe(probe).await.unwrap().into_inner();
    assert!(reply.answered && reply.rtt_ns > 0);
    let [stats] = &b.stats().await.peers[..] else { panic!("one peer") };
    assert_eq!((stats.mode(), stats.suite(), stats.endpoint.as_str()), (Mode::Sealed, Suite::Aes, A));
    assert!(stats.last_handshake_ms_ago >= 0 && stats.last_heard_ms_ago >= 0);
    let probe = ProbeRequest { peer: "a".into(), size: 0, timeout_ms: 5000 };
    assert!(b.client.probe(probe).await.unwrap().into_inner().answered);
}

#[tokio::test]
async fn a_session_goes_on_while_a_host_changes_its_key() {
    let mut hosts = [host(A, B).await, host(B, A).await];
    let public = |seed: u8| PrivateKey::from([seed; 32]).public().bytes().to_vec();
    let a = |own: u8, other: &[u8]| ApplyRequest {
        other_private_key: other.to_vec(),
        ..apply_sealed(own, 2, peer("b", "10.77.0.2/32", B))
    };
    let b = |of_a: u8, previous: &[u8]| {
        let previous_public_key = previous.to_vec();
        apply_sealed(2, of_a, Peer { previous_public_key, ..peer("a", "10.77.0.1/32", A) })
    };
    hosts[0].client.apply(a(1, &[])).await.unwrap();
    hosts[1].client.apply(b(1, &[])).await.unwrap();
    join(hosts[0].memory.underlay(), hosts[1].memory.underlay());
    assert!(hosts[0].reaches("b").await);
    let connected = std::time::Instant::now();
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    let steps =
        [(0, a(1, &[3; 32])), (1, b(3, &public(1))), (0, a(3, &[1; 32])), (1, b(3, &[])), (0, a(3, &[]))];
    for (host, request) in steps {
        assert!(hosts[host].client.apply(request).await.unwrap().into_inner().changed);
        assert!(hosts[0].reaches("b").await);
        let least = connected.elapsed().as_millis();
        let age = hosts[0].stats().await.peers[0].last_handshake_ms_ago;
        assert!(u128::from(age.unsigned_abs()) + 1 >= least, "it is a new session");
    }
}

#[tokio::test]
async fn a_probe_names_endpoint_and_time_or_says_no() {
    let mut a = host(A, B).await;
    let mut b = host(B, A).await;
    a.client.apply(apply(1, &[peer("b", "10.77.0.2/32", B)])).await.unwrap();
    let probe = ProbeRequest { peer: "b".into(), size: 1400, timeout_ms: 30 };
    let reply = a.client.probe(probe.clone()).await.unwrap().into_inner();
    assert_eq!((reply.answered, reply.rtt_ns, reply.endpoint.as_str()), (false, 0, B));

    b.client.apply(apply(1, &[peer("a", "10.77.0.1/32", A)])).await.unwrap();
    join(a.memory.underlay(), b.memory.underlay());
    let reply = a.client.probe(ProbeRequest { timeout_ms: 0, ..probe }).await.unwrap().into_inner();
    assert!(reply.answered && reply.rtt_ns > 0);

    let unknown = ProbeRequest { peer: "c".into(), ..ProbeRequest::default() };
    assert_eq!(a.client.probe(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn events_begin_with_started_and_end_with_the_process() {
    let mut host = host(A, B).await;
    host.client.apply(apply(3, &[peer("b", "10.77.0.2/32", B)])).await.unwrap();
    let mut events = host.client.events(EventsRequest {}).await.unwrap().into_inner();
    let Some(Body::Started(started)) = events.message().await.unwrap().unwrap().body else {
        panic!("the first event is not Started");
    };
    assert_eq!((started.revision, started.pid.unsigned_abs()), (3, std::process::id()));

    let mut underlay = host.memory.underlay();
    send(
        &mut underlay,
        &overmesh_core::wire::control::emit(overmesh_core::wire::control::Kind::Request, 42, 1, 0),
    );
    let Some(Body::PeerHeard(heard)) = events.message().await.unwrap().unwrap().body else {
        panic!("the second event is not PeerHeard");
    };
    assert_eq!(heard.id, "b");

    drop(host.memory.host());
    let Some(Body::DeviceLost(lost)) = events.message().await.unwrap().unwrap().body else {
        panic!("the third event is not DeviceLost");
    };
    assert_eq!(lost.device, "loopback");
    host.engine.lock().await.announce_end();
    assert!(events.message().await.unwrap().is_none());
}

#[tokio::test]
async fn shutdown_asks_the_process_to_end() {
    let mut host = host(A, B).await;
    host.client.shutdown(ShutdownRequest {}).await.unwrap();
    host.shutdown.notified().await;
    host.server.stop().await;
    assert!(!host.socket.exists());
}

#[tokio::test]
async fn the_socket_is_the_owners_and_nobody_elses() {
    let host = host(A, B).await;
    assert_eq!(host.socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let second = Server::start(&host.socket, Control::new(host.engine.clone(), host.shutdown.clone()));
    let error = second.err().expect("the socket is in use").to_string();
    assert!(error.starts_with("another fastpath listens on "), "{error}");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_file_is_not() {
    let host = host(A, B).await;
    let control = || Control::new(host.engine.clone(), host.shutdown.clone());
    let stale = host.socket.with_file_name("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    Server::start(&stale, control()).unwrap();
    eventually(|| !stale.exists());

    let file = host.socket.with_file_name("notes.txt");
    std::fs::write(&file, "mine").unwrap();
    let error = Server::start(&file, control()).err().expect("a file is no socket").to_string();
    assert!(error.contains("is not a socket. remove it, or choose another --socket"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}
