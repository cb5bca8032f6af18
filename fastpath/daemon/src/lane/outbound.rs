//! The way out: what the host sends, cut, judged, framed and gathered into runs.

use std::io;

use overmesh_core::drops::Dropped;
use overmesh_core::noise::{Now, Peers};
use overmesh_core::offload::cut::Cut;
use overmesh_core::peers::PeerIndex;
use overmesh_core::tunnel::Tunnel;
use overmesh_io::device::{Device, Packet};

use super::{Lane, Lost, lost, now_on};
use crate::gather::Runs;

impl Lane {
    pub(super) fn carry_outbound(&mut self) -> Result<(), Lost> {
        let Self { inner, outer, tunnel, sealed, received, runs, .. } = self;
        received.clear();
        inner.recv(received).map_err(lost(&**inner))?;
        let now = now_on(self.clock);
        for packet in received.packets() {
            let added = match sealed {
                Some(peers) => add_sealed(packet, runs, &mut **outer, tunnel, peers, now),
                None => add_plain(packet, runs, &mut **outer, tunnel),
            };
            added.map_err(lost(&**outer))?;
        }
        runs.flush(&mut **outer, tunnel).map_err(lost(&**outer))
    }
}

fn add_plain(packet: &Packet, runs: &mut Runs, outer: &mut dyn Device, tunnel: &Tunnel) -> io::Result<()> {
    match judge(packet, tunnel, |packet, largest| tunnel.outbound(packet, largest)) {
        Ok((cut, mut plain)) => runs.add(&cut, &mut plain, outer, tunnel),
        Err(_counted) => Ok(()),
    }
}

fn add_sealed(
    packet: &Packet,
    runs: &mut Runs,
    outer: &mut dyn Device,
    tunnel: &Tunnel,
    peers: &mut Peers,
    now: Now,
) -> io::Result<()> {
    let judged = judge(packet, tunnel, |packet, largest| tunnel.outbound_sealed(packet, largest));
    let Ok((cut, peer)) = judged else { return Ok(()) };
    if let Some(sealer) = peers.sealer(peer, now) {
        return runs.add(&cut, &mut tunnel.seal(peer, sealer), outer, tunnel);
    }
    wait(&cut, peer, tunnel, peers, now);
    Ok(())
}

/// Keeps the segments of a packet until there is a session.
fn wait(cut: &Cut, peer: PeerIndex, tunnel: &Tunnel, peers: &mut Peers, now: Now) {
    for at in 0..cut.count() {
        let mut segment = vec![0; cut.len(at)];
        cut.write(at, &mut segment);
        if let Err(reason) = peers.wait(peer, &segment, now) {
            tunnel.counters.dropped(reason.by(peer));
        }
    }
}

/// How a packet of the host is cut and what `tunnel` says of it; what goes nowhere is counted.
fn judge<'a, T>(
    packet: &'a Packet,
    tunnel: &Tunnel,
    outbound: impl FnOnce(&[u8], usize) -> Result<T, Dropped>,
) -> Result<(Cut<'a>, T), Dropped> {
    let cut = Cut::new(packet.bytes(), packet.offload).map_err(|reason| reason.by(None));
    let cut = cut.inspect_err(|dropped| tunnel.counters.dropped(*dropped))?;
    let outbound = outbound(cut.packet(), cut.len(0))?;
    Ok((cut, outbound))
}
