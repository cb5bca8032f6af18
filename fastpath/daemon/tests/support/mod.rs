//! A host in memory: an engine whose devices are loopbacks, with the test at their other ends.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use overmesh_core::peers::PeerSpec;
use overmesh_fastpath::backend::{Backend, Outer};
use overmesh_fastpath::engine::Desired;
use overmesh_io::device::{Batch, Device, OpenError};
use overmesh_io::loopback::{Loopback, pair};

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(5);

pub const A: &str = "192.0.2.1:6081";
pub const B: &str = "192.0.2.2:6081";

/// Opens loopbacks and gives the test their other ends.
#[derive(Clone)]
pub struct Memory {
    local: SocketAddr,
    remote: SocketAddr,
    ends: Arc<Mutex<Ends>>,
}

#[derive(Default)]
struct Ends {
    /// By lane.
    inner: HashMap<usize, Loopback>,
    /// By port.
    outer: BTreeMap<u16, Loopback>,
    refused: HashSet<(String, usize)>,
}

impl Memory {
    /// A host at underlay address `local` whose underlay reaches `remote` only.
    pub fn new(local: &str, remote: &str) -> Self {
        let [local, remote] = [local, remote].map(|text| text.parse().unwrap());
        Self { local, remote, ends: Arc::default() }
    }

    /// From now on this interface cannot be opened.
    pub fn refuse(&self, interface: &str) {
        self.refuse_queue(interface, 0);
    }

    /// From now on a lane cannot have its queue of this interface.
    pub fn refuse_queue(&self, interface: &str, lane: usize) {
        self.ends.lock().unwrap().refused.insert((interface.into(), lane));
    }

    /// The other end of the first lane's inner device opened last.
    pub fn host(&self) -> Loopback {
        self.queue(0)
    }

    /// The other end of a lane's inner device opened last.
    pub fn queue(&self, lane: usize) -> Loopback {
        self.ends.lock().unwrap().inner.remove(&lane).expect("an inner device was opened")
    }

    /// The other end of the outer port opened, the lowest first.
    pub fn underlay(&self) -> Loopback {
        self.ends.lock().unwrap().outer.pop_first().expect("an outer port was opened").1
    }
}

impl Backend for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn reason(&self) -> &'static str {
        "a test"
    }

    fn open_inner(&self, interface: &str, lane: usize) -> Result<Box<dyn Device>, OpenError> {
        let mut ends = self.ends.lock().unwrap();
        if ends.refused.contains(&(interface.into(), lane)) {
            return Err(OpenError {
                cause: format!("{interface} is refused"),
                fix: "ask for another".into(),
            });
        }
        let (here, there) = pair(self.local, self.remote).unwrap();
        ends.inner.insert(lane, there);
        Ok(Box::new(here))
    }

    fn open_outer(&self, port: u16) -> Result<Outer, OpenError> {
        let (here, there) = pair(self.local, self.remote).unwrap();
        self.ends.lock().unwrap().outer.insert(port, there);
        let listening = vec![SocketAddr::new(self.local.ip(), port)];
        Ok(Outer { device: Box::new(here), listening, buffers: None })
    }
}

/// The state of a host that knows these peers.
pub fn desired(peers: &[PeerSpec]) -> Desired {
    Desired {
        revision: 1,
        interface: "om0".into(),
        mtu: 1420,
        network_number: 42,
        port: 6081,
        lanes: 1,
        host_keys: None,
        peers: peers.to_vec(),
        base: None,
    }
}

/// A peer with one inner prefix at one underlay endpoint.
pub fn peer(id: &str, prefix: &str, endpoint: &str) -> PeerSpec {
    PeerSpec {
        id: id.into(),
        name: id.into(),
        prefixes: vec![prefix.into()],
        endpoints: vec![endpoint.into()],
        ..PeerSpec::default()
    }
}

/// Sends one packet into a device.
pub fn send(device: &mut Loopback, bytes: &[u8]) {
    let mut batch = Batch::new(1, bytes.len());
    batch.push(bytes).unwrap();
    device.send(&mut batch).unwrap();
    assert_eq!(batch.packets()[0].refused, None);
}

/// The next packets out of a device.
pub fn receive(device: &mut Loopback, count: usize) -> Vec<Vec<u8>> {
    let mut batch = Batch::new(count, 65_535);
    eventually(|| {
        device.recv(&mut batch).unwrap();
        batch.packets().len() == count
    });
    batch.packets().iter().map(|packet| packet.bytes().to_vec()).collect()
}

/// Asks until it is so.
pub fn eventually(mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Carries what either end sends to the other, until a lane closes its end.
pub fn join(mut a: impl Device + 'static, mut b: impl Device + 'static) {
    std::thread::spawn(move || {
        let mut batch = Batch::new(64, 65_535);
        while carry(&mut a, &mut b, &mut batch).and_then(|()| carry(&mut b, &mut a, &mut batch)).is_ok() {
            std::thread::sleep(Duration::from_micros(100));
        }
    });
}

fn carry(from: &mut impl Device, to: &mut impl Device, batch: &mut Batch) -> std::io::Result<()> {
    batch.clear();
    from.recv(batch)?;
    to.send(batch)
}
