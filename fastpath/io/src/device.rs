//! What a device is: something that takes and gives packets in batches and never waits.
//!
//! A lane has two. The **inner** device carries IP packets of the host (`tun`); the **outer** port
//! carries datagrams, each with the address at its other end (`udp`). Both are a [`Device`], so
//! that whatever wraps one wraps the other.
//!
//! # Who owns the buffers
//! The lane owns every [`Batch`]. A device borrows it for the length of one call: `recv` writes
//! into vacant slots, `send` reads filled ones, neither keeps anything. Between the two the lane
//! works on the packets in place; a header goes into the headroom before a packet, so no packet is
//! copied between one device and the other.
//!
//! # Room for super-packets
//! A slot holds the largest packet that either device gives, up to 64 KiB. A device that segments
//! and merges (TSO, UDP GSO and GRO) says so in its [`Capabilities`] and puts many segments of one
//! size into one slot; what it must know besides (segment size, checksum state) is one more field
//! of [`Packet`], as the address is.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::BorrowedFd;

use overmesh_core::drops::DropReason;
use overmesh_core::peers::PeerIndex;
use thiserror::Error;

/// Bytes kept free before a received packet: enough for the largest header put there, aligned.
const HEADROOM: usize = 64;

/// A source and sink of packets. No method waits.
pub trait Device: Send {
    /// What the device is and can; read once, after opening.
    fn capabilities(&self) -> &Capabilities;

    /// Becomes readable, one or the other, when `recv` has something to give.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;

    /// Appends what has arrived to the batch, until the batch is full or nothing is left.
    ///
    /// # Errors
    /// The device is lost: it will not work again.
    fn recv(&mut self, batch: &mut Batch) -> io::Result<()>;

    /// Sends all packets of the batch in order. One that could not be sent is marked
    /// [`Packet::refused`] with the reason; the others go on.
    ///
    /// # Errors
    /// The device is lost: it will not work again.
    fn send(&mut self, batch: &mut Batch) -> io::Result<()>;
}

/// What a device is and can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// What people call it: `om0`, `udp port 6081`.
    pub name: String,
    /// The largest packet it gives, in bytes.
    pub max_packet: usize,
}

/// Why a device could not be opened.
#[derive(Debug, Error)]
#[error("{cause}. {fix}")]
pub struct OpenError {
    /// What is so.
    pub cause: String,
    /// What to do about it.
    pub fix: String,
}

impl OpenError {
    pub(crate) fn new(cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { cause: cause.into(), fix: fix.into() }
    }
}

/// One packet in its slot.
#[derive(Debug)]
pub struct Packet {
    buffer: Box<[u8]>,
    range: Range<usize>,
    /// The other end, on an outer port: where it came from, where it shall go.
    pub address: SocketAddr,
    /// Whose packet it is, for the lane's accounts; devices leave it alone.
    pub owner: Option<PeerIndex>,
    /// Set by [`Device::send`]: why the device did not take it. `None` in a slot newly filled.
    pub refused: Option<DropReason>,
}

impl Packet {
    fn new(max_packet: usize) -> Self {
        let buffer = vec![0; HEADROOM + max_packet].into_boxed_slice();
        let address = (Ipv4Addr::UNSPECIFIED, 0).into();
        Self { buffer, range: HEADROOM..HEADROOM, address, owner: None, refused: None }
    }

    fn reset(&mut self) {
        self.range = HEADROOM..HEADROOM;
        self.owner = None;
        self.refused = None;
    }

    /// The packet.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }

    /// The packet, to be changed in place.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.range.clone()]
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Where a device writes a received packet; [`Self::set_len`] then says how much it wrote.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[HEADROOM..]
    }

    /// Makes the first `len` bytes of [`Self::room`] the packet.
    ///
    /// # Panics
    /// If the room is smaller.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.buffer.len() - HEADROOM, "{len} bytes exceed the slot");
        self.range = HEADROOM..HEADROOM + len;
    }

    /// Makes a copy of `bytes` the packet.
    ///
    /// # Panics
    /// If they exceed the slot.
    pub fn fill(&mut self, bytes: &[u8]) {
        self.set_len(bytes.len());
        self.bytes_mut().copy_from_slice(bytes);
    }

    /// Puts a header before the packet, into the headroom.
    ///
    /// # Panics
    /// If the headroom is used up.
    pub fn prepend(&mut self, header: &[u8]) {
        self.range.start -= header.len();
        self.bytes_mut()[..header.len()].copy_from_slice(header);
    }

    /// Keeps only this range of the packet.
    ///
    /// # Panics
    /// If it reaches beyond the packet.
    pub fn trim(&mut self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} is not within the packet");
        self.range = self.range.start + range.start..self.range.start + range.end;
    }
}

/// A fixed number of slots, of which the first ones hold packets.
#[derive(Debug)]
pub struct Batch {
    slots: Vec<Packet>,
    filled: usize,
}

impl Batch {
    /// An empty batch of `capacity` slots for packets of up to `max_packet` bytes.
    #[must_use]
    pub fn new(capacity: usize, max_packet: usize) -> Self {
        Self { slots: (0..capacity).map(|_| Packet::new(max_packet)).collect(), filled: 0 }
    }

    /// Empties all slots.
    pub fn clear(&mut self) {
        self.slots[..self.filled].iter_mut().for_each(Packet::reset);
        self.filled = 0;
    }

    /// Whether no slot holds a packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The packets, in order.
    #[must_use]
    pub fn packets(&self) -> &[Packet] {
        &self.slots[..self.filled]
    }

    /// The packets, in order.
    pub fn packets_mut(&mut self) -> &mut [Packet] {
        &mut self.slots[..self.filled]
    }

    /// The slots that hold no packet. A device writes packets into the first of them and then
    /// calls [`Self::grow`].
    pub fn vacant(&mut self) -> &mut [Packet] {
        &mut self.slots[self.filled..]
    }

    /// Declares the first `count` vacant slots filled.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn grow(&mut self, count: usize) {
        assert!(count <= self.slots.len() - self.filled, "{count} packets exceed the batch");
        self.filled += count;
    }

    /// Fills the next slot with a copy of `bytes`; `None` when the batch is full.
    pub fn push(&mut self, bytes: &[u8]) -> Option<&mut Packet> {
        self.vacant().first_mut()?.fill(bytes);
        self.grow(1);
        self.slots[..self.filled].last_mut()
    }

    /// Keeps the packets for which `keep` is true, in their order.
    pub fn retain(&mut self, mut keep: impl FnMut(&mut Packet) -> bool) {
        let mut kept = 0;
        for at in 0..self.filled {
            if keep(&mut self.slots[at]) {
                self.slots.swap(kept, at);
                kept += 1;
            } else {
                self.slots[at].reset();
            }
        }
        self.filled = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(packets: &[&[u8]]) -> Batch {
        let mut batch = Batch::new(4, 16);
        for packet in packets {
            batch.push(packet).unwrap();
        }
        batch
    }

    fn contents(batch: &Batch) -> Vec<&[u8]> {
        batch.packets().iter().map(Packet::bytes).collect()
    }

    #[test]
    fn a_header_goes_before_the_packet_and_comes_off_again() {
        let mut batch = batch(&[b"inner"]);
        let packet = &mut batch.packets_mut()[0];
        packet.prepend(b"head");
        assert_eq!(packet.bytes(), b"headinner");
        packet.trim(4..8);
        assert_eq!(packet.bytes(), b"inne");
    }

    #[test]
    fn retain_keeps_the_order() {
        let mut batch = batch(&[b"a", b"drop", b"b", b"drop"]);
        batch.retain(|packet| packet.bytes() != b"drop");
        assert_eq!(contents(&batch), [b"a", b"b"]);
    }

    #[test]
    fn a_full_batch_takes_no_more() {
        let mut batch = batch(&[b"1", b"2", b"3", b"4"]);
        assert!(batch.push(b"5").is_none());
        batch.clear();
        assert!(batch.is_empty() && batch.push(b"5").is_some());
    }
}
