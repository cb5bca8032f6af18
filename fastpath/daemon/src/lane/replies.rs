//! What the fastpath itself has to say: handshakes, keepalives, echoes and their answers, probes of paths.

use std::net::SocketAddr;

use overmesh_core::counters::Load;
use overmesh_core::drops::DropReason;
use overmesh_core::noise::{Now, Output, Peers};
use overmesh_core::peers::PeerIndex;
use overmesh_core::pmtu::{self, BASE, News};
use overmesh_core::tunnel::{Framing, Tunnel};
use overmesh_core::wire::{control, geneve};
use overmesh_io::device::Batch;
use tracing::{info, warn};

use super::{Lane, Lost, lost, now_on};
use crate::gather::MAX_RUN;

/// Messages that a turn sends; they are rare.
const REPLIES: usize = 16;

/// Messages that leave at the end of a turn.
pub(super) struct Replies(Batch);

impl Lane {
    /// Does what is due, and what sessions and paths asked for besides.
    pub(super) fn tend(&mut self) -> Result<(), Lost> {
        self.tend_sessions()?;
        self.tend_paths()?;
        self.flush_replies()
    }

    fn tend_sessions(&mut self) -> Result<(), Lost> {
        let Some(peers) = &mut self.sealed else { return Ok(()) };
        peers.handle_timeout(now_on(self.clock));
        while let Some(output) = self.sealed.as_mut().and_then(Peers::poll_output) {
            let counters = &self.tunnel.counters;
            match output {
                Output::Transmit { peer, endpoint, message, packet_len } => {
                    self.make_room()?;
                    self.replies.put(&message, endpoint, peer);
                    if packet_len > 0 {
                        self.tunnel.sent(peer, Load::of_one(packet_len), None);
                    }
                }
                Output::Dropped(dropped) => counters.dropped(dropped),
                Output::Connected(peer) => counters.peer(peer).connected(self.clock.elapsed()),
                Output::Moved(peer, endpoint) => {
                    counters.peer(peer).moved(endpoint);
                    self.paths.moved(peer, &self.tunnel);
                }
            }
        }
        Ok(())
    }

    fn tend_paths(&mut self) -> Result<(), Lost> {
        self.paths.handle_timeout(&self.tunnel, self.clock.elapsed());
        while let Some(output) = self.paths.poll_output() {
            match output {
                pmtu::Output::Probe { peer, size, token } => self.probe_path(peer, size, token)?,
                pmtu::Output::News(peer, news) => log(&self.tunnel.table.peer(peer).name, news),
            }
        }
        Ok(())
    }

    /// Sends an echo that is as long as an inner packet of `size` bytes.
    fn probe_path(&mut self, peer: PeerIndex, size: u16, token: u64) -> Result<(), Lost> {
        self.make_room()?;
        let Self { tunnel, sealed, replies, .. } = self;
        let echo =
            |len: usize| control::emit(control::Kind::Probe, tunnel.table.network_number(), token, len);
        match sealed {
            // In a seal the Geneve header is part of the packet.
            Some(peers) => {
                let echo = echo(usize::from(size).saturating_sub(geneve::HEADER_LEN));
                replies.put_sealed(&echo, peer, size, tunnel, peers, now_on(self.clock));
            }
            None => {
                if let Some(endpoint) = tunnel.endpoint(peer) {
                    replies.put(&echo(size.into()), endpoint, Some(peer));
                }
            }
        }
        Ok(())
    }

    fn make_room(&mut self) -> Result<(), Lost> {
        if self.replies.is_full() { self.flush_replies() } else { Ok(()) }
    }

    pub(super) fn flush_replies(&mut self) -> Result<(), Lost> {
        let Self { outer, tunnel, paths, replies: Replies(batch), .. } = self;
        outer.send(batch).map_err(lost(&**outer))?;
        for packet in batch.packets() {
            match (packet.refused, packet.owner) {
                // Of what is sent here only probes are large: the host's own interface takes less.
                (Some(DropReason::TooBig), Some(peer)) => paths.refused(peer, tunnel, self.clock.elapsed()),
                (Some(reason), owner) => tunnel.counters.dropped(reason.by(owner)),
                (None, _) => {}
            }
        }
        batch.clear();
        Ok(())
    }
}

impl Replies {
    pub(super) fn new() -> Self {
        Self(Batch::new(REPLIES, MAX_RUN))
    }

    fn is_full(&mut self) -> bool {
        self.0.vacant().is_empty()
    }

    /// Adds a datagram; lost if there is no room.
    pub(super) fn put(&mut self, datagram: &[u8], to: SocketAddr, peer: Option<PeerIndex>) {
        if let Some(packet) = self.0.push(datagram) {
            packet.address = to;
            packet.owner = peer;
        }
    }

    /// Seals an echo, padded up to `mtu`. They are few: a copy is simpler than to seal in place.
    pub(super) fn put_sealed(
        &mut self,
        echo: &[u8],
        peer: PeerIndex,
        mtu: u16,
        tunnel: &Tunnel,
        peers: &mut Peers,
        now: Now,
    ) {
        let Some(sealer) = peers.sealer(peer, now) else {
            return peers
                .wait(peer, echo, now)
                .unwrap_or_else(|reason| tunnel.counters.dropped(reason.by(peer)));
        };
        let mut framing = tunnel.seal(peer, mtu, sealer);
        let mut message = vec![0; framing.datagram_len(echo.len())];
        message[framing.room_before()..][..echo.len()].copy_from_slice(echo);
        framing.frame(&mut message, echo.len());
        self.put(&message, framing.endpoint(), Some(peer));
    }
}

fn log(peer: &str, news: News) {
    match news {
        News::Found { mtu } if mtu < BASE => {
            warn!(
                peer,
                mtu, "path MTU found: less than IPv6 needs. IPv6 packets that TCP does not cut are lost"
            );
        }
        News::Found { mtu } => info!(peer, mtu, "path MTU found"),
        News::BlackHole { mtu } => {
            warn!(
                peer,
                mtu, "black hole: packets of the path MTU do not arrive any more. searching a smaller one"
            );
        }
    }
}
