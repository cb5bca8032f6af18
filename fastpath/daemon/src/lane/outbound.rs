//! The way out: what the host sends, cut, judged, framed and gathered into runs.

use std::io;

use overmesh_core::drops::Dropped;
use overmesh_core::noise::{Now, Peers};
use overmesh_core::offload::cut::Cut;
use overmesh_core::peers::PeerIndex;
use overmesh_core::tunnel::{Framing, Tunnel};
use overmesh_io::device::{Device, Packet};

use super::{Lane, Lost, lost, now_on};
use crate::gather::Runs;
use crate::handover::Lower;

impl Lane {
    pub(super) fn carry_outbound(&mut self) -> Result<(), Lost> {
        let Self { inner, received, .. } = self;
        received.clear();
        inner.recv(received).map_err(lost(&**inner))?;
        self.send_received()
    }

    /// Carries what other lanes gave: as much as fits a turn.
    pub(super) fn carry_handed(&mut self) -> Result<(), Lost> {
        self.received.clear();
        if !self.inbox.drain(&mut self.received) {
            self.waker.wake();
        }
        self.send_received()
    }

    fn send_received(&mut self) -> Result<(), Lost> {
        let Self { outer, tunnel, sealed, received, runs, lower, .. } = self;
        let now = now_on(self.clock);
        let mut departures = Departures { outer: &mut **outer, tunnel, runs, lower, now };
        for packet in received.packets() {
            let added = match sealed {
                Some(peers) => departures.add_sealed(packet, peers),
                None => departures.add_plain(packet),
            };
            added.map_err(lost(departures.outer))?;
        }
        lower.wake();
        runs.flush(&mut **outer, tunnel).map_err(lost(&**outer))
    }
}

/// Where the packets of a turn go.
struct Departures<'a> {
    outer: &'a mut dyn Device,
    tunnel: &'a Tunnel,
    runs: &'a mut Runs,
    lower: &'a mut Lower,
    now: Now,
}

impl Departures<'_> {
    fn add_plain(&mut self, packet: &Packet) -> io::Result<()> {
        let tunnel = self.tunnel;
        let judged = judge(packet, tunnel, |packet, largest| tunnel.outbound(packet, largest));
        let Ok((cut, mut plain)) = judged else { return Ok(()) };
        match tunnel.carrier(plain.peer()) {
            lane if lane == tunnel.lane => self.runs.add(&cut, &mut plain, self.outer, tunnel)?,
            other => self.lower.give(other, packet, plain.peer(), tunnel),
        }
        Ok(())
    }

    fn add_sealed(&mut self, packet: &Packet, peers: &mut Peers) -> io::Result<()> {
        let tunnel = self.tunnel;
        let judged = judge(packet, tunnel, |packet, largest| tunnel.outbound_sealed(packet, largest));
        let Ok((cut, peer)) = judged else { return Ok(()) };
        let carrier = tunnel.carrier(peer);
        if carrier != tunnel.lane {
            self.lower.give(carrier, packet, peer, tunnel);
        } else if let Some(sealer) = peers.sealer(peer, self.now) {
            self.runs.add(&cut, &mut tunnel.seal(peer, sealer), self.outer, tunnel)?;
        } else if tunnel.lane > 0 && !peers.is_expected(peer) {
            // The peer's lane of this number has yet to say where it is, or its port is shut.
            self.lower.give(0, packet, peer, tunnel);
        } else {
            wait(&cut, peer, tunnel, peers, self.now);
        }
        Ok(())
    }
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
