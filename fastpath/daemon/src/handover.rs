//! The only way between lanes: packets for a peer that has fewer lanes than this host.
//!
//! The kernel chooses a flow's TUN queue before anyone knows which lane reaches its peer. A lane that
//! the peer lacks gives the packet to the lane that it has, always a lower one. That costs copies and
//! a wake-up and is rare: once the peer has answered, the kernel knows the flow's queue (`io/src/tun.rs`).

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use overmesh_core::drops::DropReason;
use overmesh_core::offload::virtio::Header;
use overmesh_core::peers::PeerIndex;
use overmesh_core::tunnel::Tunnel;
use overmesh_io::device::{Batch, Packet};
use overmesh_io::poll::Waker;

/// Packets that wait for a lane; each may be 64 KiB.
const WAITING: usize = 128;

/// A packet as the host gave it.
struct Handed {
    packet: Box<[u8]>,
    offload: Header,
}

/// Where a lane is given packets by higher lanes.
pub(crate) struct Inbox(Receiver<Handed>);

/// Where a lane gives packets to a lower one.
#[derive(Clone)]
pub(crate) struct Outbox {
    packets: SyncSender<Handed>,
    waker: Waker,
}

/// An inbox, and the way there; a packet put there wakes its lane.
pub(crate) fn handover(waker: Waker) -> (Outbox, Inbox) {
    let (packets, inbox) = sync_channel(WAITING);
    (Outbox { packets, waker }, Inbox(inbox))
}

impl Inbox {
    /// Moves packets to a batch; false if it is full and more may wait.
    pub(crate) fn drain(&self, batch: &mut Batch) -> bool {
        while !batch.vacant().is_empty() {
            let Ok(Handed { packet, offload }) = self.0.try_recv() else { return true };
            if let Some(copy) = batch.push(&packet) {
                copy.offload = offload;
            }
        }
        false
    }
}

/// The ways to all lanes below one, and which of them were used in this turn.
pub(crate) struct Lower(Vec<(Outbox, bool)>);

impl Lower {
    pub(crate) fn new(outboxes: impl Iterator<Item = Outbox>) -> Self {
        Self(outboxes.map(|outbox| (outbox, false)).collect())
    }

    /// Gives `lane` a packet that is for `peer`, and counts that.
    pub(crate) fn give(&mut self, lane: usize, packet: &Packet, peer: PeerIndex, tunnel: &Tunnel) {
        let (outbox, used) = &mut self.0[lane];
        let handed = Handed { packet: packet.bytes().into(), offload: packet.offload };
        match outbox.packets.try_send(handed) {
            Ok(()) => {
                *used = true;
                tunnel.counters.handed_over();
            }
            Err(_full_or_ended) => tunnel.counters.dropped(DropReason::LaneFull.by(peer)),
        }
    }

    /// Wakes the lanes that were given something, at the end of a turn.
    pub(crate) fn wake(&mut self) {
        for (outbox, used) in &mut self.0 {
            if std::mem::take(used) {
                outbox.waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use overmesh_core::peers::{PeerSpec, Table};

    use super::*;

    #[test]
    fn a_lane_keeps_so_many_and_the_rest_is_counted() {
        let peer = PeerSpec { id: "b".into(), name: "b".into(), ..PeerSpec::default() };
        let tunnel = Tunnel::new(Arc::new(Table::new(1, 1420, None, &[peer]).unwrap()), None);
        let b = tunnel.table.index_of("b").unwrap();
        let (outbox, inbox) = handover(Waker::new().unwrap());
        let mut lower = Lower::new([outbox].into_iter());
        let mut batch = Batch::new(1, 16);
        batch.push(b"hello").unwrap();
        for _ in 0..WAITING + 2 {
            lower.give(0, &batch.packets()[0], b, &tunnel);
        }
        assert_eq!(tunnel.counters.handed_over.read(), WAITING as u64);
        assert_eq!(tunnel.counters.peer(b).drops.read(DropReason::LaneFull), 2);

        let mut turn = Batch::new(WAITING - 1, 16);
        assert!(!inbox.drain(&mut turn), "one is left");
        turn.clear();
        assert!(inbox.drain(&mut turn));
        assert_eq!(turn.packets()[0].bytes(), b"hello");
    }
}
