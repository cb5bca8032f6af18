//! What the lane is told from outside: other tables and devices, echoes to send, to end.

use std::mem;
use std::ops::ControlFlow;
use std::sync::mpsc::TryRecvError;
use std::time::Instant;

use overmesh_core::tunnel::Tunnel;
use overmesh_core::wire::{control, geneve};

use super::{Lane, Lost, new_batch, new_sealed, now_on, padded_to};
use crate::command::{Command, Devices, INNER, Install, OUTER, Replaced};
use crate::probe::Probe;

impl Lane {
    pub(super) fn obey(&mut self) -> Result<ControlFlow<()>, Lost> {
        self.waker.reset();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Install(install)) => self.install(install),
                Ok(Command::Probe(probe)) => self.probe(probe)?,
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Ok(ControlFlow::Break(())),
                Err(TryRecvError::Empty) => return Ok(ControlFlow::Continue(())),
            }
        }
    }

    fn install(&mut self, install: Install) {
        let Install { tunnel, devices, done } = install;
        let devices = self.replace_devices(devices);
        self.paths.install(&self.tunnel, &tunnel);
        self.replace_sealed(&tunnel);
        let _ = done.send(Replaced { devices, tunnel: mem::replace(&mut self.tunnel, tunnel) });
    }

    fn replace_devices(&mut self, devices: Devices) -> Devices {
        let replaced = Devices {
            inner: devices.inner.map(|inner| mem::replace(&mut self.inner, inner)),
            outer: devices.outer.map(|outer| mem::replace(&mut self.outer, outer)),
        };
        if replaced.inner.is_some() {
            self.poller.watch(INNER, self.inner.descriptors());
        }
        if replaced.outer.is_some() {
            self.poller.watch(OUTER, self.outer.descriptors());
            self.received = new_batch(&*self.outer);
        }
        replaced
    }

    /// Sessions go on if this host is still known by a key that it had.
    fn replace_sealed(&mut self, new: &Tunnel) {
        let (now, table) = (now_on(self.clock), &*new.table);
        let kept = self.sealed.take_if(|peers| table.host_keys().is_some_and(|keys| peers.rekey(keys)));
        self.sealed = match kept {
            Some(mut peers) => {
                let changed = table.keys_since(&self.tunnel.table, new.lane);
                peers.change(table.peers().len(), changed, padded_to(table), now);
                Some(peers)
            }
            None => new_sealed(table, new.lane, now),
        };
    }

    fn probe(&mut self, probe: Probe) -> Result<(), Lost> {
        let Self { tunnel, sealed, replies, .. } = self;
        let peer = tunnel.table.index_of(&probe.peer);
        let network_number = tunnel.table.network_number();
        if let (Some(peers), Some(peer)) = (sealed, peer) {
            // As long as a sealed packet of that size: the Geneve header is part of it here.
            let size = probe.size.saturating_sub(geneve::HEADER_LEN);
            let echo = control::emit(control::Kind::Request, network_number, probe.token, size);
            let mtu = tunnel.path(peer).sure;
            replies.put_sealed(&echo, peer, mtu, tunnel, peers, now_on(self.clock));
        } else {
            let echo = control::emit(control::Kind::Request, network_number, probe.token, probe.size);
            replies.put(&echo, probe.endpoint, peer);
        }
        self.probes.begin(probe, Instant::now());
        self.flush_replies()
    }
}
