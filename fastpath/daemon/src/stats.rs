//! What is applied and counted, as the contract words it.

use std::collections::BTreeMap;
use std::time::Duration;

use overmesh_core::counters::{Counter, Drops, PeerCounters};
use overmesh_core::noise::Suite;
use overmesh_core::peers::{Peer, PeerIndex};
use overmesh_core::pmtu::Known;
use overmesh_io::offloads::Report;
use overmesh_io::udp::Buffers;

use crate::engine::Engine;
use crate::proto::{self, Mode, Offload, PeerStats, SocketBuffers, StatsReply};
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
            socket_buffers: running.buffers().map(socket_buffers),
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

/// Of all lanes together, those that have ended included; the way to the peer, of those that go on.
fn peer_stats(running: &Running, index: PeerIndex, peer: &Peer, now: Duration) -> PeerStats {
    let lanes: Vec<_> = running.tunnels.iter().map(|tunnel| tunnel.counters.peer(index)).collect();
    let sum = |counter: fn(&PeerCounters) -> &Counter| lanes.iter().map(|lane| counter(lane).read()).sum();
    let latest =
        |moment: fn(&PeerCounters) -> Option<Duration>| lanes.iter().filter_map(|lane| moment(lane)).max();
    let carriers: Vec<_> = running.carriers(index).collect();
    let path = path(&carriers.iter().map(|tunnel| tunnel.path(index)).collect::<Vec<_>>());
    let endpoints: Vec<_> = carriers.iter().filter_map(|tunnel| tunnel.endpoint(index)).collect();
    let ago = |then: Option<Duration>| then.map_or(-1, |then| millis(now.saturating_sub(then)));
    let (mode, suite) = match peer.keys.as_ref().map(|keys| keys.suite) {
        None => (Mode::Plain, proto::Suite::Unspecified),
        Some(Suite::ChaChaPoly) => (Mode::Sealed, proto::Suite::Chacha),
        Some(Suite::AesGcm) => (Mode::Sealed, proto::Suite::Aes),
    };
    PeerStats {
        id: peer.id.to_string(),
        endpoint: endpoints.first().map(ToString::to_string).unwrap_or_default(),
        endpoints: endpoints.iter().map(ToString::to_string).collect(),
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

/// What gets through whichever lane carries it: the least of those that there is or was traffic on.
fn path(lanes: &[Known]) -> Known {
    let used = lanes.iter().copied().filter(|path| path.watched || path.probed);
    let least = |one: Known, other: Known| Known {
        probed: one.probed && other.probed,
        ..if other.sure < one.sure { other } else { one }
    };
    used.reduce(least).unwrap_or(lanes[0])
}

fn socket_buffers(Buffers { receive, send }: Buffers) -> SocketBuffers {
    let bytes = |count| u32::try_from(count).unwrap_or(u32::MAX);
    SocketBuffers { receive: bytes(receive), send: bytes(send), wanted: bytes(Buffers::WANTED) }
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

#[cfg(test)]
mod tests {
    use super::*;

    const UNUSED: Known = Known { sure: 1280, most: 1420, probed: false, watched: false };
    const SEARCHING: Known = Known { watched: true, ..UNUSED };
    const WIDE: Known = Known { sure: 1420, most: 1420, probed: true, watched: true };
    const NARROW: Known = Known { sure: 1350, most: 1350, probed: true, watched: false };

    #[test]
    fn a_path_takes_what_the_narrowest_lane_in_use_does() {
        let told = |lanes: &[Known]| {
            let path = path(lanes);
            (path.sure, path.probed)
        };
        assert_eq!(told(&[UNUSED, UNUSED]), (1280, false));
        assert_eq!(told(&[UNUSED, WIDE]), (1420, true));
        assert_eq!(told(&[WIDE, NARROW, UNUSED]), (1350, true));
        assert_eq!(told(&[WIDE, SEARCHING]), (1280, false));
        assert_eq!(told(&[Known { sure: 1000, ..NARROW }, SEARCHING]), (1000, false));
    }
}
