//! What passes between a lane and the thread that rules it: commands in, events out.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use overmesh_core::tunnel::Tunnel;
use overmesh_io::device::Device;
use overmesh_io::poll::Waker;
use tokio::sync::oneshot;

use crate::handover::{Inbox, Outbox, handover};
use crate::probe::Probe;

/// What a lane waits for: commands and packets of other lanes, and packets of its devices.
pub(crate) const COMMANDS: u32 = 0;
pub(crate) const INNER: u32 = 1;
pub(crate) const OUTER: u32 = 2;

/// What the lane tells the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The first packet from this peer (its id) since it was applied.
    PeerHeard(String),
    /// A device is gone, and the lane with it.
    DeviceLost {
        /// Its name.
        device: String,
        /// What the kernel says.
        reason: String,
    },
    /// The process is about to end; nothing follows.
    Stopping,
}

/// What the lane is told.
pub enum Command {
    /// Go on with another table, and other devices where given.
    Install(Install),
    /// Send an echo and time its answer.
    Probe(Probe),
    /// End.
    Stop,
}

/// See [`Command::Install`].
pub struct Install {
    /// Table and counters to go on with.
    pub tunnel: Arc<Tunnel>,
    /// The devices to go on with; `None` leaves the lane the one it has.
    pub devices: Devices,
    /// Gets what was replaced, once it is out of use.
    pub done: oneshot::Sender<Replaced>,
}

/// Devices handed to the lane or back.
#[derive(Default)]
pub struct Devices {
    /// The host's side.
    pub inner: Option<Box<dyn Device>>,
    /// The underlay's side.
    pub outer: Option<Box<dyn Device>>,
}

/// What an [`Install`] replaced.
pub struct Replaced {
    /// Table and counters used until then.
    pub tunnel: Arc<Tunnel>,
    /// Devices used until then, where others took their place.
    pub devices: Devices,
}

/// What other threads hold of a lane.
#[derive(Clone)]
pub struct LaneHandle {
    commands: Sender<Command>,
    waker: Waker,
    outbox: Outbox,
}

/// The lane's ends of what its handle holds.
pub(crate) struct LaneEnds {
    pub(crate) commands: Receiver<Command>,
    pub(crate) waker: Waker,
    pub(crate) inbox: Inbox,
}

impl LaneHandle {
    /// A handle, and what its lane needs.
    pub(crate) fn new() -> io::Result<(Self, LaneEnds)> {
        let waker = Waker::new()?;
        let (sender, commands) = channel();
        let (outbox, inbox) = handover(waker.clone());
        let handle = Self { commands: sender, waker: waker.clone(), outbox };
        Ok((handle, LaneEnds { commands, waker, inbox }))
    }

    /// Where to give the lane packets.
    pub(crate) fn outbox(&self) -> Outbox {
        self.outbox.clone()
    }

    /// Tells the lane something; lost if the lane has ended.
    pub fn tell(&self, command: Command) {
        let _ = self.commands.send(command);
        self.waker.wake();
    }
}
