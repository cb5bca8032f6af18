//! What is applied, and the lanes that carry it out: opened, added, changed and removed together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use overmesh_core::peers::{PeerIndex, Table};
use overmesh_core::pmtu::Pace;
use overmesh_core::tunnel::Tunnel;
use overmesh_io::device::OpenError;
use overmesh_io::udp::Buffers;
use tokio::sync::{broadcast, oneshot};

use crate::backend::{Backend, Outer};
use crate::command::{Command, Devices, Event, Install, LaneHandle, Replaced};
use crate::engine::{Desired, EngineError};
use crate::lane;

/// What lanes are made with.
pub(crate) struct Site<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) clock: Instant,
    pub(crate) pace: Pace,
    pub(crate) events: &'a broadcast::Sender<Event>,
}

/// What is applied; nothing yet, at first.
#[derive(Default)]
pub(crate) struct Running {
    pub(crate) revision: u64,
    interface: String,
    port: u16,
    pub(crate) digest: [u8; 32],
    /// What every lane goes by and counts. Those of lanes that have ended come last: nothing counted
    /// is forgotten.
    pub(crate) tunnels: Vec<Arc<Tunnel>>,
    lanes: Vec<Lane>,
}

/// A lane that runs; it ends when dropped.
struct Lane {
    handle: LaneHandle,
    thread: Option<JoinHandle<()>>,
    port: Port,
}

/// What is told of a lane's port.
struct Port {
    listening: Vec<SocketAddr>,
    buffers: Option<Buffers>,
}

/// What takes the place of devices of a lane.
struct Replacement {
    devices: Devices,
    port: Option<Port>,
}

impl Running {
    /// Makes `desired` so; false if all of it already was. On an error all lanes are as they were.
    pub(crate) async fn change(
        &mut self,
        site: &Site<'_>,
        desired: &Desired,
        table: Table,
    ) -> Result<bool, EngineError> {
        let (digest, count) = (table.digest(), desired.lanes.max(1) as usize);
        let moves = desired.interface != self.interface || desired.port != self.port;
        let changed = moves || count != self.lanes.len() || digest != self.digest;
        if changed {
            self.replace(site, desired, table, count).await?;
        }
        self.revision = desired.revision;
        self.interface.clone_from(&desired.interface);
        self.port = desired.port;
        self.digest = digest;
        Ok(changed)
    }

    /// Whether anything is applied.
    pub(crate) fn has_begun(&self) -> bool {
        !self.lanes.is_empty()
    }

    /// How many lanes there are.
    pub(crate) fn lane_count(&self) -> usize {
        self.lanes.len()
    }

    /// What the first lane goes by.
    pub(crate) fn first(&self) -> &Tunnel {
        &self.tunnels[0]
    }

    /// The lanes that carry packets to a peer; the first is one.
    pub(crate) fn carriers(&self, peer: PeerIndex) -> impl Iterator<Item = &Tunnel> {
        let lanes = self.tunnels[..self.lanes.len()].iter().map(Arc::as_ref);
        lanes.filter(move |tunnel| tunnel.carrier(peer) == tunnel.lane)
    }

    pub(crate) fn tell_first(&self, command: Command) {
        self.lanes[0].handle.tell(command);
    }

    /// Where the lanes listen.
    pub(crate) fn listening(&self) -> impl Iterator<Item = &SocketAddr> {
        self.lanes.iter().flat_map(|lane| &lane.port.listening)
    }

    /// What the sockets of any lane can hold at least.
    pub(crate) fn buffers(&self) -> Option<Buffers> {
        self.lanes.iter().filter_map(|lane| lane.port.buffers).reduce(Buffers::min)
    }

    /// All that may fail comes first; then the lanes that stay change, and the others end.
    async fn replace(
        &mut self,
        site: &Site<'_>,
        desired: &Desired,
        table: Table,
        count: usize,
    ) -> Result<(), EngineError> {
        if self.lanes.iter().any(Lane::has_ended) {
            return Err(EngineError::Stopped);
        }
        let kept = count.min(self.lanes.len());
        let tunnels = self.next_tunnels(table, count);
        let replacements = self.open_replacements(site, desired, kept)?;
        let added = self.add(site, desired, &tunnels[kept..count])?;
        for (lane, (replacement, tunnel)) in self.lanes.iter_mut().zip(replacements.into_iter().zip(&tunnels))
        {
            lane.install(replacement, tunnel.clone()).await?;
        }
        self.lanes.truncate(kept);
        self.lanes.extend(added);
        self.tunnels = tunnels;
        Ok(())
    }

    /// A tunnel for every lane that there will be or was.
    fn next_tunnels(&self, table: Table, count: usize) -> Vec<Arc<Tunnel>> {
        let before = |lane: usize| self.tunnels.get(lane).map(Arc::as_ref);
        let first = Tunnel::new(Arc::new(table), before(0));
        let others = 1..count.max(self.tunnels.len());
        let mut others: Vec<_> = others.map(|lane| Arc::new(first.beside(lane, before(lane)))).collect();
        others.insert(0, Arc::new(first));
        others
    }

    /// Opens what the lanes that stay must change to.
    fn open_replacements(
        &self,
        site: &Site,
        desired: &Desired,
        kept: usize,
    ) -> Result<Vec<Replacement>, EngineError> {
        let current = self.port;
        if kept > 0
            && desired.port != current
            && usize::from(desired.port.abs_diff(current)) < self.lanes.len().max(desired.lanes as usize)
        {
            let lanes = desired.lanes.max(1) as usize;
            return Err(EngineError::PortsOverlap { port: desired.port, lanes, current });
        }
        let open = |lane: usize| {
            let mut replacement = Replacement { devices: Devices::default(), port: None };
            if desired.interface != self.interface {
                replacement.devices.inner = Some(site.backend.open_inner(&desired.interface, lane)?);
            }
            if desired.port != self.port {
                let Outer { device, listening, buffers } = open_outer(site, desired, lane)?;
                replacement.devices.outer = Some(device);
                replacement.port = Some(Port { listening, buffers });
            }
            Ok(replacement)
        };
        (0..kept).map(open).collect()
    }

    /// Starts further lanes.
    fn add(&self, site: &Site, desired: &Desired, tunnels: &[Arc<Tunnel>]) -> Result<Vec<Lane>, EngineError> {
        let mut added: Vec<Lane> = vec![];
        for tunnel in tunnels {
            let inner = site.backend.open_inner(&desired.interface, tunnel.lane)?;
            let Outer { device: outer, listening, buffers } = open_outer(site, desired, tunnel.lane)?;
            let lower = self.lanes.iter().chain(&added).map(|lane| &lane.handle);
            let (handle, thread) =
                lane::spawn(inner, outer, tunnel.clone(), lower, site.clock, site.pace, site.events.clone())?;
            let port = Port { listening, buffers };
            added.push(Lane { handle, thread: Some(thread), port });
        }
        Ok(added)
    }
}

fn open_outer(site: &Site, desired: &Desired, lane: usize) -> Result<Outer, OpenError> {
    let above = u16::try_from(lane).expect("lanes are checked to fit the ports");
    site.backend.open_outer(desired.port + above)
}

impl Lane {
    /// Returns once the lane goes on with the new; the old is freed here, not on the lane.
    async fn install(&mut self, replacement: Replacement, tunnel: Arc<Tunnel>) -> Result<(), EngineError> {
        let Replacement { devices, port } = replacement;
        let (done, replaced) = oneshot::channel();
        self.handle.tell(Command::Install(Install { tunnel, devices, done }));
        let Replaced { .. } = replaced.await.map_err(|_| EngineError::Stopped)?;
        if let Some(port) = port {
            self.port = port;
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.handle.tell(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A lane that panicked has printed why; there is nothing left to stop.
            let _ = thread.join();
        }
    }
}
