//! What the fastpath itself has to say: handshakes, keepalives, echoes and their answers.

use std::net::SocketAddr;

use overmesh_core::counters::Load;
use overmesh_core::noise::{Now, Output, Peers};
use overmesh_core::peers::PeerIndex;
use overmesh_core::tunnel::{Framing, Tunnel};
use overmesh_io::device::Batch;

use super::{Lane, Lost, lost, now_on};
use crate::gather::MAX_RUN;

/// Messages that a turn sends; they are rare.
const REPLIES: usize = 16;

/// Messages that leave at the end of a turn.
pub(super) struct Replies(Batch);

impl Lane {
    /// Does what is due, and what sessions asked for besides.
    pub(super) fn tend(&mut self) -> Result<(), Lost> {
        let Some(peers) = &mut self.sealed else { return Ok(()) };
        peers.handle_timeout(now_on(self.clock));
        while let Some(output) = self.sealed.as_mut().and_then(Peers::poll_output) {
            let counters = &self.tunnel.counters;
            match output {
                Output::Transmit { peer, endpoint, message, packet_len } => {
                    if self.replies.is_full() {
                        self.flush_replies()?;
                    }
                    self.replies.put(&message, endpoint, peer);
                    if packet_len > 0 {
                        self.tunnel.sent(peer, Load::of_one(packet_len), None);
                    }
                }
                Output::Dropped(dropped) => counters.dropped(dropped),
                Output::Connected(peer) => counters.peer(peer).connected(self.clock.elapsed()),
                Output::Moved(peer, endpoint) => counters.peer(peer).moved(endpoint),
            }
        }
        self.flush_replies()
    }

    pub(super) fn flush_replies(&mut self) -> Result<(), Lost> {
        let Self { outer, tunnel, replies: Replies(batch), .. } = self;
        outer.send(batch).map_err(lost(&**outer))?;
        for packet in batch.packets() {
            if let Some(reason) = packet.refused {
                tunnel.counters.dropped(reason.by(packet.owner));
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

    /// Seals an echo. They are few: a copy is simpler than to seal in place.
    pub(super) fn put_sealed(
        &mut self,
        echo: &[u8],
        peer: PeerIndex,
        tunnel: &Tunnel,
        peers: &mut Peers,
        now: Now,
    ) {
        let Some(sealer) = peers.sealer(peer, now) else {
            return peers
                .wait(peer, echo, now)
                .unwrap_or_else(|reason| tunnel.counters.dropped(reason.by(peer)));
        };
        let mut framing = tunnel.seal(peer, sealer);
        let mut message = vec![0; framing.datagram_len(echo.len())];
        message[framing.room_before()..][..echo.len()].copy_from_slice(echo);
        framing.frame(&mut message, echo.len());
        self.put(&message, framing.endpoint(), Some(peer));
    }
}
