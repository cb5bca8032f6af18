//! What a device is: something that takes and gives packets in batches and never waits.
//!
//! A lane has two. The **inner** device carries IP packets of the host (`tun`); the **outer** port
//! carries datagrams, each with the address at its other end (`udp`). Both are a [`Device`], so
//! that whatever wraps one wraps the other.
//!
//! # Who owns the buffers
//! The lane owns every [`Batch`]. A device borrows it for the length of one call: `recv` writes
//! into vacant slots, `send` reads filled ones, neither keeps anything. Between the two the lane
//! copies each packet once, from a slot of one batch to a slot of the other: cutting out of a
//! super-packet on the way out, merging into one on the way in.
//!
//! # Super-packets
//! A slot holds up to 64 KiB. On an inner device that is one IP packet, whose [`Packet::offload`]
//! says what is still to be done to it; on an outer port a **run** of datagrams to or from one
//! address, each of [`Packet::segment_len`] bytes but for the last, which may be shorter. How much
//! of that a device takes it says in its [`Capabilities`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::BorrowedFd;

use overmesh_core::counters::Load;
use overmesh_core::drops::DropReason;
use overmesh_core::offload::virtio::Header;
use overmesh_core::peers::PeerIndex;
use thiserror::Error;

/// Bytes kept free before a received packet: enough for the largest header put there, aligned.
const HEADROOM: usize = 64;

/// A source and sink of packets. No method waits.
pub trait Device: Send {
    /// What the device is and can. An offload that fails is gone from it afterwards.
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
    /// The largest packet or run it gives, in bytes.
    pub max_packet: usize,
    /// An outer port: datagrams in a run that it sends in one piece.
    pub max_segments: usize,
    /// An inner device: the host takes super-packets of TCP.
    pub takes_tcp: bool,
    /// An inner device: the host takes super-packets of UDP.
    pub takes_udp: bool,
}

impl Capabilities {
    /// A device without offloads.
    pub fn plain(name: impl Into<String>, max_packet: usize) -> Self {
        Self { name: name.into(), max_packet, max_segments: 1, takes_tcp: false, takes_udp: false }
    }
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

/// One packet, or one run of datagrams, in its slot.
#[derive(Debug)]
pub struct Packet {
    buffer: Box<[u8]>,
    range: Range<usize>,
    /// The other end, on an outer port: where it came from, where it shall go.
    pub address: SocketAddr,
    /// On an outer port: bytes of each datagram but the last. 0: there is only one.
    pub segment_len: usize,
    /// On an inner device: what is still to be done to the packet.
    pub offload: Header,
    /// The inner packets in here, for the lane's accounts; devices leave it alone.
    pub load: Load,
    /// Whose packet it is, for the lane's accounts; devices leave it alone.
    pub owner: Option<PeerIndex>,
    /// Set by [`Device::send`]: why the device did not take it. `None` in a slot newly filled.
    pub refused: Option<DropReason>,
}

impl Packet {
    fn new(max_packet: usize) -> Self {
        let buffer = vec![0; HEADROOM + max_packet].into_boxed_slice();
        let address = (Ipv4Addr::UNSPECIFIED, 0).into();
        Self {
            buffer,
            range: HEADROOM..HEADROOM,
            address,
            segment_len: 0,
            offload: Header::default(),
            load: Load::default(),
            owner: None,
            refused: None,
        }
    }

    fn reset(&mut self) {
        self.range = HEADROOM..HEADROOM;
        self.segment_len = 0;
        self.offload = Header::default();
        self.load = Load::default();
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

    /// The same, with `prefix` bytes of headroom before it.
    ///
    /// # Panics
    /// If there is less headroom.
    pub fn room_after(&mut self, prefix: usize) -> &mut [u8] {
        &mut self.buffer[HEADROOM - prefix..]
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

    /// Makes it longer by `len` bytes, to be written by the caller; they hold whatever was there.
    ///
    /// # Panics
    /// If that exceeds the slot.
    pub fn extend(&mut self, len: usize) -> &mut [u8] {
        let end = self.range.end;
        assert!(len <= self.buffer.len() - end, "{len} more bytes exceed the slot");
        self.range.end += len;
        &mut self.buffer[end..end + len]
    }

    /// How many datagrams there are; an empty packet is one, too.
    #[must_use]
    pub fn datagram_count(&self) -> usize {
        if self.segment_len == 0 { 1 } else { self.len().div_ceil(self.segment_len).max(1) }
    }

    /// Datagram `at`, to be changed in place.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn datagram_mut(&mut self, at: usize) -> &mut [u8] {
        let range = self.datagram_range(at);
        &mut self.bytes_mut()[range]
    }

    /// The datagrams, in order.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.datagram_count()).map(|at| &self.bytes()[self.datagram_range(at)])
    }

    fn datagram_range(&self, at: usize) -> Range<usize> {
        if self.segment_len == 0 {
            return 0..self.len();
        }
        let begin = at * self.segment_len;
        begin..self.len().min(begin + self.segment_len)
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
///
/// It is full when all slots are, or when the packets have so many bytes that the next device must
/// not be kept waiting for them.
#[derive(Debug)]
pub struct Batch {
    slots: Vec<Packet>,
    filled: usize,
    bytes: usize,
    budget: usize,
}

impl Batch {
    /// An empty batch of `capacity` slots for packets of up to `max_packet` bytes.
    #[must_use]
    pub fn new(capacity: usize, max_packet: usize) -> Self {
        Self::with_budget(capacity, max_packet, usize::MAX)
    }

    /// An empty batch that is full, too, once it holds `budget` bytes.
    #[must_use]
    pub fn with_budget(capacity: usize, max_packet: usize, budget: usize) -> Self {
        let slots = (0..capacity).map(|_| Packet::new(max_packet)).collect();
        Self { slots, filled: 0, bytes: 0, budget }
    }

    /// Empties all slots.
    pub fn clear(&mut self) {
        self.slots[..self.filled].iter_mut().for_each(Packet::reset);
        self.filled = 0;
        self.bytes = 0;
    }

    /// Keeps the packets that `stays` says of, in their order, and empties the other slots.
    pub fn retain(&mut self, mut stays: impl FnMut(&Packet) -> bool) {
        let mut kept = 0;
        for at in 0..self.filled {
            if stays(&self.slots[at]) {
                self.slots.swap(kept, at);
                kept += 1;
            }
        }
        self.slots[kept..self.filled].iter_mut().for_each(Packet::reset);
        self.filled = kept;
        self.bytes = self.packets().iter().map(Packet::len).sum();
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

    /// The slots that may be filled. A device writes packets into the first of them and then
    /// calls [`Self::grow`].
    pub fn vacant(&mut self) -> &mut [Packet] {
        let end = if self.bytes < self.budget { self.slots.len() } else { self.filled };
        &mut self.slots[self.filled..end]
    }

    /// Declares the first `count` vacant slots filled.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn grow(&mut self, count: usize) {
        assert!(count <= self.slots.len() - self.filled, "{count} packets exceed the batch");
        self.bytes += self.slots[self.filled..][..count].iter().map(Packet::len).sum::<usize>();
        self.filled += count;
    }

    /// Fills the next slot with a copy of `bytes`; `None` when the batch is full.
    pub fn push(&mut self, bytes: &[u8]) -> Option<&mut Packet> {
        self.vacant().first_mut()?.fill(bytes);
        self.grow(1);
        self.slots[..self.filled].last_mut()
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
    fn a_run_is_made_of_datagrams_of_one_length_and_a_rest() {
        let mut batch = batch(&[b"aabbc", b""]);
        let [run, empty] = batch.packets_mut() else { unreachable!() };
        run.segment_len = 2;
        assert_eq!(run.datagrams().collect::<Vec<_>>(), [&b"aa"[..], b"bb", b"c"]);
        run.extend(1)[0] = b'd';
        run.datagram_mut(0).fill(b'x');
        assert_eq!(run.datagrams().collect::<Vec<_>>(), [&b"xx"[..], b"bb", b"cd"]);
        empty.segment_len = 2;
        assert_eq!(empty.datagrams().collect::<Vec<_>>(), [b""]);
    }

    #[test]
    fn a_batch_that_has_its_bytes_is_full() {
        let mut batch = Batch::with_budget(4, 16, 10);
        assert!(batch.push(&[0; 9]).is_some() && batch.push(&[0; 9]).is_some());
        assert!(batch.push(b"").is_none() && batch.vacant().is_empty());
        batch.clear();
        assert!(batch.push(&[0; 9]).is_some());
    }

    #[test]
    fn what_stays_keeps_its_order_and_makes_room_for_others() {
        let mut batch = batch(&[b"1", b"2", b"3", b"4"]);
        batch.retain(|packet| packet.bytes() != b"1" && packet.bytes() != b"3");
        assert!(batch.push(b"5").is_some() && batch.push(b"6").is_some() && batch.push(b"7").is_none());
        assert_eq!(batch.packets().iter().map(Packet::bytes).collect::<Vec<_>>(), [b"2", b"4", b"5", b"6"]);
    }

    #[test]
    fn a_full_batch_takes_no_more() {
        let mut batch = batch(&[b"1", b"2", b"3", b"4"]);
        assert!(batch.push(b"5").is_none());
        batch.clear();
        assert!(batch.is_empty() && batch.push(b"5").is_some());
    }
}
