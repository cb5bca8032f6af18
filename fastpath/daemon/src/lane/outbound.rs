//! The way out: what the host sends, cut, judged, framed and gathered into runs.

use std::io;

use overmesh_core::drops::Dropped;
use overmesh_core::noise::{Now, Peers};
use overmesh_core::offload::cut::Cut;
use overmesh_core::peers::PeerIndex;
use overmesh_core::pmtu::{Known, Notices, Paths};
use overmesh_core::tunnel::{Framing, Tunnel};
use overmesh_io::device::{Device, Packet};

use super::{Lane, Lost, lost, now_on};
use crate::deliver::Deliveries;
use crate::gather::Runs;
use crate::handover::Lower;

impl Lane {
    pub(super) fn carry_outbound(&mut self) -> Result<(), Lost> {
        let Self { inner, backlog, .. } = self;
        inner.recv(backlog.room()).map_err(lost(&**inner))?;
        self.send_due()
    }

    /// Carries what other lanes gave: as much as fits a turn.
    pub(super) fn carry_handed(&mut self) -> Result<(), Lost> {
        if !self.inbox.drain(self.backlog.room()) {
            self.waker.wake();
        }
        self.send_due()
    }

    fn send_due(&mut self) -> Result<(), Lost> {
        let Self { inner, outer, tunnel, sealed, backlog, runs, lower, paths, notices, deliveries, .. } =
            self;
        let now = now_on(self.clock);
        let mut departures =
            Departures { outer: &mut **outer, tunnel, runs, lower, paths, notices, returned: vec![], now };
        for packet in backlog.due() {
            let added = match sealed {
                Some(peers) => departures.add_sealed(packet, peers),
                None => departures.add_plain(packet),
            };
            added.map_err(lost(departures.outer))?;
        }
        let returned = departures.returned;
        backlog.forget();
        lower.wake();
        runs.flush(&mut **outer, tunnel).map_err(lost(&**outer))?;
        give_back(&returned, deliveries, &mut **inner, tunnel).map_err(lost(&**inner))
    }
}

/// The packets of a turn and where they go.
struct Departures<'a> {
    outer: &'a mut dyn Device,
    tunnel: &'a Tunnel,
    runs: &'a mut Runs,
    lower: &'a mut Lower,
    paths: &'a mut Paths,
    notices: &'a mut Notices,
    /// What the host is told of its packets.
    returned: Vec<Vec<u8>>,
    now: Now,
}

impl Departures<'_> {
    fn add_plain(&mut self, packet: &Packet) -> io::Result<()> {
        let Ok(cut) = self.parse(packet) else { return Ok(()) };
        let Ok(mut plain) = self.tunnel.outbound(cut.packet()) else { return Ok(()) };
        let carrier = self.tunnel.carrier(plain.peer());
        if carrier != self.tunnel.lane {
            self.lower.give(carrier, packet, plain.peer(), self.tunnel);
            return Ok(());
        }
        let path = self.watch(plain.peer(), self.tunnel.path(plain.peer()));
        let Ok(cut) = self.fit(cut, plain.peer(), path) else { return Ok(()) };
        self.runs.add(&cut, &mut plain, self.outer, self.tunnel)
    }

    fn add_sealed(&mut self, packet: &Packet, peers: &mut Peers) -> io::Result<()> {
        let Ok(cut) = self.parse(packet) else { return Ok(()) };
        let Ok(peer) = self.tunnel.outbound_sealed(cut.packet()) else { return Ok(()) };
        let carrier = self.tunnel.carrier(peer);
        if carrier != self.tunnel.lane {
            self.lower.give(carrier, packet, peer, self.tunnel);
            return Ok(());
        }
        let path = self.tunnel.path(peer);
        let Ok(cut) = self.fit(cut, peer, path) else { return Ok(()) };
        if let Some(sealer) = peers.sealer(peer, self.now) {
            let path = self.watch(peer, path);
            let mut sealed = self.tunnel.seal(peer, path.sure, sealer);
            return self.runs.add(&cut, &mut sealed, self.outer, self.tunnel);
        }
        if self.tunnel.lane > 0 && !peers.is_expected(peer) {
            // The peer's lane of this number has yet to say where it is, or its port is shut.
            self.lower.give(0, packet, peer, self.tunnel);
        } else {
            self.wait(&cut, peer, peers);
        }
        Ok(())
    }

    /// What the host wants to send, checked.
    fn parse<'p>(&self, packet: &'p Packet) -> Result<Cut<'p>, Dropped> {
        let cut = Cut::new(packet.bytes(), packet.offload).map_err(|reason| reason.by(None));
        cut.inspect_err(|dropped| self.tunnel.counters.dropped(*dropped))
    }

    /// Sees to it that the path is tried; what is known of it then.
    fn watch(&mut self, peer: PeerIndex, path: Known) -> Known {
        if path.watched {
            return path;
        }
        self.paths.begin(peer, self.tunnel, self.now.time);
        self.tunnel.path(peer)
    }

    /// Cuts a packet to what the path takes, or tells the host what that is.
    fn fit<'p>(&mut self, cut: Cut<'p>, peer: PeerIndex, path: Known) -> Result<Cut<'p>, Dropped> {
        self.tunnel.fit(cut, peer, path).inspect_err(|_| {
            let first = segment(&cut, 0);
            self.returned.extend(self.notices.too_big(&first, path.most, self.now.time));
        })
    }

    /// Keeps the segments of a packet until there is a session.
    fn wait(&self, cut: &Cut, peer: PeerIndex, peers: &mut Peers) {
        for at in 0..cut.count() {
            if let Err(reason) = peers.wait(peer, &segment(cut, at), self.now) {
                self.tunnel.counters.dropped(reason.by(peer));
            }
        }
    }
}

fn segment(cut: &Cut, at: usize) -> Vec<u8> {
    let mut segment = vec![0; cut.len(at)];
    cut.write(at, &mut segment);
    segment
}

fn give_back(
    messages: &[Vec<u8>],
    deliveries: &mut Deliveries,
    inner: &mut dyn Device,
    tunnel: &Tunnel,
) -> io::Result<()> {
    for message in messages {
        deliveries.add(message, None, inner, tunnel)?;
    }
    if messages.is_empty() { Ok(()) } else { deliveries.flush(inner, tunnel) }
}
