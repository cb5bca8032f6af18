//! What is applied and counted, as the contract words it.

use std::collections::BTreeMap;
use std::time::Duration;

use overmesh_core::counters::{Counter, Drops, PeerCounters};
use overmesh_core::noise::Suite;
use overmesh_core::peers::{Peer, PeerIndex};
use overmesh_io::offloads::Report;

use crate::engine::Engine;
use crate::proto::{self, Mode, Offload, PeerStats, StatsReply};
use crate::running::Running;

/// The version of this build.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the fastpath knows of itself, and of its peers where that is asked for.
pub(crate) fn stats(engine: &Engine, with_peers: bool) -> StatsReply {
    let itself = StatsReply {
        backend: engine.backend().name().into(),
        backend_reason: engine.backend().reason().into(),
        pid: pid(),
        uptime_ms: millis(engine.uptime()).unsigned_abs(),
        version: VERSION.into(),
        offloads: engine.backend().offloads().into_iter().map(offload).collect(),
        ..StatsReply::default()
    };
    match engine.running() {
        None => itself,
        Some(running) => StatsReply {
            revision: running.revision,
            listening: running.listening().map(ToString::to_string).collect(),
            peers: if with_peers { peers(running, engine.uptime()) } else { vec![] },
            drops: by_name(running.tunnels.iter().map(|tunnel| &*tunnel.counters.drops)),
            mtu: running.first().table.mtu(),
            table_digest: running.digest.into(),
            lanes: u32::try_from(running.lane_count()).unwrap_or(u32::MAX),
            handed_over: running.tunnels.iter().map(|tunnel| tunnel.counters.handed_over.read()).sum(),
            ..itself
        },
    }
}

/// This process, as the contract types it.
pub(crate) fn pid() -> i32 {
    std::process::id().cast_signed()
}

fn peers(running: &Running, now: Duration) -> Vec<PeerStats> {
    let entries = running.first().table.entries();
    entries.map(|(index, peer)| peer_stats(running, index, peer, now)).collect()
}

/// Of all lanes together; where the peer is, as the first has it.
fn peer_stats(running: &Running, index: PeerIndex, peer: &Peer, now: Duration) -> PeerStats {
    let lanes: Vec<_> = running.tunnels.iter().map(|tunnel| tunnel.counters.peer(index)).collect();
    let sum = |counter: fn(&PeerCounters) -> &Counter| lanes.iter().map(|lane| counter(lane).read()).sum();
    let latest =
        |moment: fn(&PeerCounters) -> Option<Duration>| lanes.iter().filter_map(|lane| moment(lane)).max();
    let path = running.first().path(index);
    let ago = |then: Option<Duration>| then.map_or(-1, |then| millis(now.saturating_sub(then)));
    let (mode, suite) = match peer.keys.as_ref().map(|keys| keys.suite) {
        None => (Mode::Plain, proto::Suite::Unspecified),
        Some(Suite::ChaChaPoly) => (Mode::Sealed, proto::Suite::Chacha),
        Some(Suite::AesGcm) => (Mode::Sealed, proto::Suite::Aes),
    };
    PeerStats {
        id: peer.id.to_string(),
        endpoint: running.first().endpoint(index).map(|endpoint| endpoint.to_string()).unwrap_or_default(),
        tx_packets: sum(|lane| &lane.tx_packets),
        tx_bytes: sum(|lane| &lane.tx_bytes),
        rx_packets: sum(|lane| &lane.rx_packets),
        rx_bytes: sum(|lane| &lane.rx_bytes),
        last_heard_ms_ago: ago(latest(PeerCounters::last_heard)),
        drops: by_name(lanes.iter().map(|lane| &lane.drops)),
        mode: mode.into(),
        suite: suite.into(),
        last_handshake_ms_ago: ago(latest(PeerCounters::last_connected)),
        path_mtu: path.sure.into(),
        path_mtu_probed: path.probed,
    }
}

fn offload(report: Report) -> Offload {
    let Report { offload, on, reason, failures, unwanted } = report;
    Offload { name: offload.name().into(), on, reason, failures, unwanted }
}

fn by_name<'a>(lanes: impl Iterator<Item = &'a Drops>) -> BTreeMap<String, u64> {
    let mut drops = BTreeMap::new();
    for (reason, count) in lanes.flat_map(Drops::occurred) {
        *drops.entry(reason.name().into()).or_default() += count;
    }
    drops
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
