//! Where devices come from: the table of backends, and what is wrapped around what they open.

use std::fs::File;
use std::io::BufWriter;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use overmesh_io::device::{Device, OpenError};
use overmesh_io::fault::{Faults, Faulty};
use overmesh_io::offloads::{Offloads, Report};
use overmesh_io::pcap::Captured;
use overmesh_io::tun::Tun;
use overmesh_io::udp::{Buffers, Udp};

/// The underlay's side of a lane.
pub struct Outer {
    /// Carries datagrams.
    pub device: Box<dyn Device>,
    /// The addresses it listens on.
    pub listening: Vec<SocketAddr>,
    /// What its sockets can hold; `None`: it has none.
    pub buffers: Option<Buffers>,
}

/// Opens the devices that a lane runs on.
pub trait Backend: Send + Sync {
    /// Its name in the statistics.
    fn name(&self) -> &'static str;

    /// Why it was chosen, for people.
    fn reason(&self) -> &'static str;

    /// What the kernel does to make it fast.
    fn offloads(&self) -> Vec<Report> {
        vec![]
    }

    /// Opens the host's side for a lane; the first, 0, is opened first.
    fn open_inner(&self, interface: &str, lane: usize) -> Result<Box<dyn Device>, OpenError>;

    /// Opens the underlay's side.
    fn open_outer(&self, port: u16) -> Result<Outer, OpenError>;
}

/// The kernel's TUN and UDP, which every Linux host has.
#[derive(Debug, Default)]
pub struct TunBackend {
    /// Write inner packets to this file, those of further lanes to `file.1` and so on; they begin anew
    /// when the interface changes.
    pub capture: Option<PathBuf>,
    /// Spoil what is sent to the underlay.
    pub faults: Option<Faults>,
    /// Which offloads are wanted, and what became of them.
    pub offloads: Arc<Offloads>,
}

impl Backend for TunBackend {
    fn name(&self) -> &'static str {
        "tun"
    }

    fn reason(&self) -> &'static str {
        "kernel TUN and UDP, the only backend in this build"
    }

    fn offloads(&self) -> Vec<Report> {
        self.offloads.report()
    }

    fn open_inner(&self, interface: &str, lane: usize) -> Result<Box<dyn Device>, OpenError> {
        let tun = Tun::open(interface, lane, self.offloads.clone())?;
        let Some(path) = &self.capture else { return Ok(Box::new(tun)) };
        let path = capture_path(path, lane);
        let captured = File::create(&path).and_then(|file| Captured::new(tun, BufWriter::new(file)));
        let unwritable = |error| OpenError {
            cause: format!("capture file {} cannot be written: {error}", path.display()),
            fix: "choose another with --pcap".into(),
        };
        Ok(Box::new(captured.map_err(unwritable)?))
    }

    fn open_outer(&self, port: u16) -> Result<Outer, OpenError> {
        let udp = Udp::open(port, self.offloads.clone())?;
        let (listening, buffers) = (udp.listening(), udp.buffers());
        let device: Box<dyn Device> = match &self.faults {
            Some(faults) => Box::new(Faulty::new(udp, faults.clone())),
            None => Box::new(udp),
        };
        Ok(Outer { device, listening, buffers })
    }
}

fn capture_path(path: &Path, lane: usize) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    if lane > 0 {
        path.push(format!(".{lane}"));
    }
    path.into()
}
