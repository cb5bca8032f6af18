//! What is applied and counted, as the contract words it.

use std::collections::BTreeMap;
use std::time::Duration;

use overmesh_core::counters::Drops;
use overmesh_core::noise::Suite;
use overmesh_core::peers::{Peer, PeerIndex};
use overmesh_core::tunnel::Tunnel;
use overmesh_io::offloads::Report;

use crate::engine::{Engine, Running};
use crate::proto::{self, Mode, Offload, PeerStats, StatsReply};

/// The version of this build.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything the fastpath knows of itself.
pub(crate) fn stats(engine: &Engine) -> StatsReply {
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
            listening: running.listening.iter().map(ToString::to_string).collect(),
            peers: peers(running, engine.uptime()),
            drops: by_name(&running.tunnel.counters.drops),
            mtu: running.tunnel.table.mtu(),
            table_digest: running.digest.into(),
            lanes: 1,
            ..itself
        },
    }
}

/// This process, as the contract types it.
pub(crate) fn pid() -> i32 {
    std::process::id().cast_signed()
}

fn peers(running: &Running, now: Duration) -> Vec<PeerStats> {
    let tunnel = &running.tunnel;
    tunnel.table.entries().map(|(index, peer)| peer_stats(tunnel, index, peer, now)).collect()
}

fn peer_stats(tunnel: &Tunnel, index: PeerIndex, peer: &Peer, now: Duration) -> PeerStats {
    let (counters, path) = (tunnel.counters.peer(index), tunnel.path(index));
    let ago = |then: Option<Duration>| then.map_or(-1, |then| millis(now.saturating_sub(then)));
    let (mode, suite) = match peer.keys.as_ref().map(|keys| keys.suite) {
        None => (Mode::Plain, proto::Suite::Unspecified),
        Some(Suite::ChaChaPoly) => (Mode::Sealed, proto::Suite::Chacha),
        Some(Suite::AesGcm) => (Mode::Sealed, proto::Suite::Aes),
    };
    PeerStats {
        id: peer.id.clone(),
        endpoint: tunnel.endpoint(index).map(|endpoint| endpoint.to_string()).unwrap_or_default(),
        tx_packets: counters.tx_packets.read(),
        tx_bytes: counters.tx_bytes.read(),
        rx_packets: counters.rx_packets.read(),
        rx_bytes: counters.rx_bytes.read(),
        last_heard_ms_ago: ago(counters.last_heard()),
        drops: by_name(&counters.drops),
        mode: mode.into(),
        suite: suite.into(),
        last_handshake_ms_ago: ago(counters.last_connected()),
        path_mtu: path.sure.into(),
        path_mtu_probed: path.probed,
    }
}

fn offload(report: Report) -> Offload {
    let Report { offload, on, reason, failures } = report;
    Offload { name: offload.name().into(), on, reason, failures }
}

fn by_name(drops: &Drops) -> BTreeMap<String, u64> {
    drops.occurred().map(|(reason, count)| (reason.name().into(), count)).collect()
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
