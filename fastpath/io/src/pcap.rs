//! Writes what passes a device to a file that Wireshark and tcpdump read.
//!
//! Format: draft-ietf-opsawg-pcap, link type 101 (`LINKTYPE_RAW`: IPv4 and IPv6 packets as they are).

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::device::{Batch, Capabilities, Device, Packet};

const MAGIC_MICROSECONDS: u32 = 0xa1b2_c3d4;
const VERSION: [u16; 2] = [2, 4];
const SNAP_LEN: u32 = 65_535;
const LINKTYPE_RAW: u32 = 101;

/// A device whose packets, in both directions, are also written to a file.
pub struct Captured<D, W> {
    device: D,
    /// `None` after writing failed: the packets go on without.
    file: Option<W>,
}

impl<D: Device, W: Write> Captured<D, W> {
    /// Begins the file.
    pub fn new(device: D, mut file: W) -> io::Result<Self> {
        file.write_all(&file_header())?;
        Ok(Self { device, file: Some(file) })
    }

    fn record<'a>(&mut self, packets: impl Iterator<Item = &'a Packet>) {
        let Some(file) = &mut self.file else { return };
        let now = SystemTime::now();
        let written: io::Result<()> =
            packets.map(Packet::bytes).try_for_each(|bytes| write_record(file, now, bytes));
        if let Err(error) = written.and_then(|()| file.flush()) {
            tracing::error!(%error, "capture stopped: its file cannot be written");
            self.file = None;
        }
    }
}

impl<D: Device, W: Write + Send> Device for Captured<D, W> {
    fn capabilities(&self) -> &Capabilities {
        self.device.capabilities()
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.device.descriptors()
    }

    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        let before = batch.packets().len();
        self.device.recv(batch)?;
        self.record(batch.packets()[before..].iter());
        Ok(())
    }

    fn send(&mut self, batch: &mut Batch) -> io::Result<()> {
        self.device.send(batch)?;
        self.record(batch.packets().iter().filter(|packet| packet.refused.is_none()));
        Ok(())
    }
}

fn file_header() -> Vec<u8> {
    let mut header = MAGIC_MICROSECONDS.to_ne_bytes().to_vec();
    header.extend(VERSION.iter().flat_map(|part| part.to_ne_bytes()));
    header.extend([0; 8]); // time zone and accuracy: always zero
    header.extend(SNAP_LEN.to_ne_bytes());
    header.extend(LINKTYPE_RAW.to_ne_bytes());
    header
}

fn write_record(file: &mut impl Write, now: SystemTime, bytes: &[u8]) -> io::Result<()> {
    let time = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    // The format's seconds end in 2106.
    let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    for field in [seconds, time.subsec_micros(), length, length] {
        file.write_all(&field.to_ne_bytes())?;
    }
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loopback;
    use std::fs::File;

    /// The packets of a capture file, read as the format says.
    fn packets(file: &[u8]) -> Vec<&[u8]> {
        let (header, mut records) = file.split_at(24);
        assert_eq!(header, file_header());
        let mut packets = vec![];
        while !records.is_empty() {
            let length = u32::from_ne_bytes(records[8..12].try_into().unwrap()) as usize;
            packets.push(&records[16..16 + length]);
            records = &records[16 + length..];
        }
        packets
    }

    #[test]
    fn both_directions_are_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inner.pcap");
        let address = "192.0.2.1:1".parse().unwrap();
        let (here, mut there) = loopback::pair(address, address).unwrap();
        let mut here = Captured::new(here, File::create(&path).unwrap()).unwrap();

        let mut batch = Batch::new(4, 65_535);
        batch.push(b"sent").unwrap();
        here.send(&mut batch).unwrap();
        batch.clear();
        batch.push(b"received").unwrap();
        there.send(&mut batch).unwrap();
        batch.clear();
        here.recv(&mut batch).unwrap();

        let file = std::fs::read(&path).unwrap();
        assert_eq!(packets(&file), [&b"sent"[..], b"received"]);
    }

    #[test]
    fn a_full_disk_ends_the_capture_not_the_traffic() {
        let address = "192.0.2.1:1".parse().unwrap();
        let (here, mut there) = loopback::pair(address, address).unwrap();
        let mut here = Captured { device: here, file: Some(&mut [0; 20][..]) };
        let mut batch = Batch::new(4, 65_535);
        batch.push(b"longer than the disk").unwrap();
        here.send(&mut batch).unwrap();
        assert!(here.file.is_none());
        batch.clear();
        there.recv(&mut batch).unwrap();
        assert_eq!(batch.packets().len(), 1);
    }
}
