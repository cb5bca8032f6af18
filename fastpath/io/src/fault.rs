//! A network that loses, doubles, damages and reorders, the same way on each run.
//!
//! Faults befall what is sent, each datagram of a run by itself; what is received passes untouched.
//! To the sender all is well: a packet that the faulty network lost counts as sent.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::str::FromStr;

use fastrand::Rng;

use crate::device::{Batch, Capabilities, Device, OpenError};

/// Packets that go to the device at once.
const BATCH: usize = 64;

/// How often what goes wrong. Chances are from 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Faults {
    /// Chance that a packet is lost.
    pub loss: f64,
    /// Chance that a packet is sent twice.
    pub duplicate: f64,
    /// Chance that one bit of a packet is flipped.
    pub corrupt: f64,
    /// Chance that a packet is held back, to be overtaken.
    pub reorder: f64,
    /// How many packets overtake one that is held back.
    pub delay: u64,
    /// Where the sequence of chances begins.
    pub seed: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Self { loss: 0.0, duplicate: 0.0, corrupt: 0.0, reorder: 0.0, delay: 1, seed: 0 }
    }
}

impl FromStr for Faults {
    type Err = OpenError;

    /// Reads `loss=0.05,seed=7`; what is not named stays as in the default.
    fn from_str(text: &str) -> Result<Self, OpenError> {
        let mut faults = Self::default();
        for setting in text.split(',') {
            let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
            match key.trim() {
                "loss" => faults.loss = chance(value)?,
                "duplicate" => faults.duplicate = chance(value)?,
                "corrupt" => faults.corrupt = chance(value)?,
                "reorder" => faults.reorder = chance(value)?,
                "delay" => faults.delay = count(value)?,
                "seed" => faults.seed = count(value)?,
                other => {
                    return Err(OpenError::new(
                        format!("{other:?} is no fault"),
                        "choose from loss, duplicate, corrupt, reorder, delay and seed",
                    ));
                }
            }
        }
        Ok(faults)
    }
}

fn chance(text: &str) -> Result<f64, OpenError> {
    let chance = text.parse().ok().filter(|chance| (0.0..=1.0).contains(chance));
    chance.ok_or_else(|| OpenError::new(format!("{text:?} is no chance"), "give a number from 0 to 1"))
}

fn count(text: &str) -> Result<u64, OpenError> {
    text.parse().map_err(|_| OpenError::new(format!("{text:?} is no count"), "give a whole number"))
}

/// A device behind a faulty network.
pub struct Faulty<D> {
    device: D,
    faults: Faults,
    dice: Rng,
    /// Packets that came by so far: the clock by which held ones are due.
    passed: u64,
    held: VecDeque<Held>,
    network: Batch,
}

/// A packet held back until `due` packets have passed.
struct Held {
    due: u64,
    bytes: Vec<u8>,
    address: SocketAddr,
}

impl<D: Device> Faulty<D> {
    /// Puts the faulty network around a device.
    pub fn new(device: D, faults: Faults) -> Self {
        let dice = Rng::with_seed(faults.seed);
        let network = Batch::new(BATCH, device.capabilities().max_packet);
        Self { device, faults, dice, passed: 0, held: VecDeque::new(), network }
    }

    fn pass(&mut self, datagram: &[u8], address: SocketAddr) -> io::Result<()> {
        self.passed += 1;
        if !self.happens(self.faults.loss) {
            let mut bytes = datagram.to_vec();
            if self.happens(self.faults.corrupt) {
                self.flip_one_bit(&mut bytes);
            }
            if self.happens(self.faults.duplicate) {
                self.queue(&bytes, address)?;
            }
            if self.happens(self.faults.reorder) {
                let due = self.passed + self.faults.delay;
                self.held.push_back(Held { due, bytes, address });
            } else {
                self.queue(&bytes, address)?;
            }
        }
        self.release()
    }

    /// Lets go of the packets that enough others have overtaken.
    fn release(&mut self) -> io::Result<()> {
        while self.held.front().is_some_and(|held| held.due <= self.passed) {
            if let Some(Held { bytes, address, .. }) = self.held.pop_front() {
                self.queue(&bytes, address)?;
            }
        }
        Ok(())
    }

    fn queue(&mut self, bytes: &[u8], address: SocketAddr) -> io::Result<()> {
        if self.network.vacant().is_empty() {
            self.flush()?;
        }
        if let Some(packet) = self.network.push(bytes) {
            packet.address = address;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.device.send(&mut self.network)?;
        self.network.clear();
        Ok(())
    }

    fn happens(&mut self, chance: f64) -> bool {
        self.dice.f64() < chance
    }

    fn flip_one_bit(&mut self, bytes: &mut [u8]) {
        if !bytes.is_empty() {
            let bit = self.dice.usize(..8 * bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

impl<D: Device> Device for Faulty<D> {
    fn capabilities(&self) -> &Capabilities {
        self.device.capabilities()
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.device.descriptors()
    }

    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        self.device.recv(batch)
    }

    fn send(&mut self, batch: &mut Batch) -> io::Result<()> {
        for packet in batch.packets() {
            packet.datagrams().try_for_each(|datagram| self.pass(datagram, packet.address))?;
        }
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loopback;

    /// What arrives of 40 one-byte packets numbered from 0.
    fn arrivals(faults: &str) -> Vec<u8> {
        let address = "192.0.2.1:1".parse().unwrap();
        let (here, mut there) = loopback::pair(address, address).unwrap();
        let mut here = Faulty::new(here, faults.parse().unwrap());
        for numbers in (0..40).collect::<Vec<_>>().chunks(10) {
            let mut batch = Batch::new(10, 16);
            for number in numbers {
                batch.push(&[*number]).unwrap();
            }
            here.send(&mut batch).unwrap();
        }
        let mut batch = Batch::new(100, 65_535);
        there.recv(&mut batch).unwrap();
        batch.packets().iter().map(|packet| packet.bytes()[0]).collect()
    }

    #[test]
    fn no_faults_change_nothing() {
        assert_eq!(arrivals("seed=1"), (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn the_same_seed_gives_the_same_faults() {
        let faults = "loss=0.3,duplicate=0.3,reorder=0.3,corrupt=0.1,seed=7";
        assert_eq!(arrivals(faults), arrivals(faults));
        assert_ne!(arrivals(faults), arrivals(&faults.replace("seed=7", "seed=8")));
    }

    #[test]
    fn each_fault_does_what_it_says() {
        assert_eq!(arrivals("loss=1"), []);
        assert!((10..30).contains(&arrivals("loss=0.5,seed=3").len()));
        assert_eq!(arrivals("duplicate=1").len(), 80);
        let reordered = arrivals("reorder=0.2,delay=3,seed=3");
        assert!(!reordered.is_sorted() && reordered.len() > 35);
        let flipped = |(at, byte): (usize, u8)| (byte ^ u8::try_from(at).unwrap()).count_ones();
        assert!(arrivals("corrupt=1").into_iter().enumerate().map(flipped).all(|bits| bits == 1));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let refused = |text: &str| text.parse::<Faults>().unwrap_err().to_string();
        assert_eq!(
            refused("los=1"),
            "\"los\" is no fault. choose from loss, duplicate, corrupt, reorder, delay and seed"
        );
        assert_eq!(refused("loss=2"), "\"2\" is no chance. give a number from 0 to 1");
        assert_eq!(refused("seed"), "\"\" is no count. give a whole number");
    }
}
