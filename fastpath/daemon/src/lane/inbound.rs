//! The way in: datagrams judged, their packets delivered to the host; echoes answered and taken.

use std::net::SocketAddr;
use std::time::Instant;
use std::{io, slice};

use overmesh_core::noise::{Now, Peers};
use overmesh_core::peers::{PeerIndex, Table};
use overmesh_core::pmtu::Paths;
use overmesh_core::tunnel::{Content, Inbound, Tunnel};
use overmesh_io::device::Device;
use tokio::sync::broadcast;

use super::replies::Replies;
use super::{Lane, Lost, lost, now_on};
use crate::command::Event;
use crate::deliver::Deliveries;
use crate::probe::Probes;

impl Lane {
    pub(super) fn carry_inbound(&mut self) -> Result<(), Lost> {
        let Self { inner, outer, tunnel, sealed, received, deliveries, replies, probes, paths, .. } = self;
        received.clear();
        outer.recv(received).map_err(lost(&**outer))?;
        let (instant, now) = (Instant::now(), now_on(self.clock));
        let events = &self.events;
        let mut arrivals = Arrivals {
            inner: &mut **inner,
            tunnel,
            deliveries,
            replies,
            probes,
            paths,
            events,
            instant,
            now,
        };
        for run in received.packets_mut() {
            let from = run.address;
            for at in 0..run.datagram_count() {
                let datagram = run.datagram_mut(at);
                let taken = match sealed {
                    Some(peers) => arrivals.take_sealed(datagram, from, peers),
                    None => arrivals.take_plain(datagram, from),
                };
                taken.map_err(lost(arrivals.inner))?;
            }
        }
        deliveries.flush(&mut **inner, tunnel).map_err(lost(&**inner))?;
        self.flush_replies()
    }
}

/// The datagrams of a turn and where their contents go.
struct Arrivals<'a> {
    inner: &'a mut dyn Device,
    tunnel: &'a Tunnel,
    deliveries: &'a mut Deliveries,
    replies: &'a mut Replies,
    probes: &'a mut Probes,
    paths: &'a mut Paths,
    events: &'a broadcast::Sender<Event>,
    instant: Instant,
    now: Now,
}

impl Arrivals<'_> {
    fn take_plain(&mut self, datagram: &mut [u8], from: SocketAddr) -> io::Result<()> {
        let Ok(inbound) = self.tunnel.inbound(datagram, from.ip(), self.now.time) else { return Ok(()) };
        self.announce(&inbound);
        match inbound.content {
            Content::Packet(range) => return self.deliver(&datagram[range], inbound.peer),
            Content::Reply(range) => self.replies.put(&datagram[range], from, inbound.peer),
            Content::Answer(token) => {
                let table = &self.tunnel.table;
                let there = table.at_underlay(from.ip());
                self.answered(token, there, inbound.peer, |asked| is_at(table, asked, from));
            }
            Content::Nothing => {}
        }
        Ok(())
    }

    fn take_sealed(&mut self, datagram: &mut [u8], from: SocketAddr, peers: &mut Peers) -> io::Result<()> {
        let Ok(inbound) = self.tunnel.inbound_sealed(datagram, from, peers, self.now) else { return Ok(()) };
        self.announce(&inbound);
        match (inbound.content, inbound.peer) {
            (Content::Packet(range), peer) => return self.deliver(&datagram[range], peer),
            (Content::Reply(range), Some(peer)) => {
                let mtu = self.tunnel.path(peer).sure;
                self.replies.put_sealed(&datagram[range], peer, mtu, self.tunnel, peers, self.now);
            }
            (Content::Answer(token), Some(peer)) => {
                let table = &self.tunnel.table;
                let is_by = |asked: &str| table.index_of(asked) == Some(peer);
                self.answered(token, slice::from_ref(&peer), Some(peer), is_by);
            }
            (Content::Reply(_) | Content::Answer(_) | Content::Nothing, _) => {}
        }
        Ok(())
    }

    fn announce(&self, inbound: &Inbound) {
        if let Some(peer) = inbound.peer.filter(|_| inbound.first) {
            let _ = self.events.send(Event::PeerHeard(self.tunnel.table.peer(peer).id.to_string()));
        }
    }

    fn deliver(&mut self, packet: &[u8], from: Option<PeerIndex>) -> io::Result<()> {
        self.deliveries.add(packet, from, self.inner, self.tunnel)
    }

    /// Takes the answer to an echo from one of the peers `there`: of the path's, or one that was asked for.
    fn answered(
        &mut self,
        token: u64,
        there: &[PeerIndex],
        by: Option<PeerIndex>,
        is_by: impl FnOnce(&str) -> bool,
    ) {
        let Self { paths, tunnel, now, .. } = self;
        if there.iter().any(|peer| paths.answered(*peer, token, tunnel, now.time)) {
            return;
        }
        if let Err(reason) = self.probes.answered(token, self.instant, is_by) {
            self.tunnel.counters.dropped(reason.by(by));
        }
    }
}

/// Whether a peer may send from there, in a plain network.
fn is_at(table: &Table, peer: &str, from: SocketAddr) -> bool {
    table.index_of(peer).is_some_and(|peer| table.peer(peer).is_at(from.ip()))
}
