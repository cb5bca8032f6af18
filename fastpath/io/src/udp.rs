//! The underlay's side of the tunnel: kernel UDP sockets, one a family, on every local address.
//!
//! Which local address a datagram leaves from is the kernel's choice, by its routes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use overmesh_core::drops::DropReason;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, bind, getsockname, sendto, socket_with, sockopt,
};

use crate::device::{Batch, Capabilities, Device, OpenError, Packet};
use crate::messages::{Messages, enable_gro, forbid_fragments, probe_gso};
use crate::offloads::{Offload, Offloads};

/// Runs of datagrams a system call: each may be 64 KiB, and all should fit the cache.
const MESSAGES: usize = 8;
/// A UDP datagram, or a run of them, cannot be larger.
const MAX_DATAGRAM: usize = 65_527;
/// Datagrams in a run: the kernel's `UDP_MAX_SEGMENTS` before it was raised.
const MAX_SEGMENTS: usize = 64;
/// Destinations to which runs cannot be sent, before no run is sent to anyone.
const MAX_APART: usize = 16;

/// How much a socket can hold that waits, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    /// On the way in.
    pub receive: usize,
    /// On the way out.
    pub send: usize,
}

impl Buffers {
    /// What is asked of the kernel: bursts of many senders have to wait somewhere.
    pub const WANTED: usize = 8 << 20;

    /// The smaller of two, either way.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self { receive: self.receive.min(other.receive), send: self.send.min(other.send) }
    }
}

/// The UDP sockets of one port.
pub struct Udp {
    sockets: Vec<Socket>,
    /// The socket that `recv` asks first: taking turns, none can starve the other.
    turn: usize,
    offloads: Arc<Offloads>,
    capabilities: Capabilities,
}

impl Udp {
    /// Binds `port` on all IPv4 and IPv6 addresses; 0 lets the kernel choose, for each family.
    ///
    /// A host without IPv6 gets IPv4 only; that is logged.
    pub fn open(port: u16, offloads: Arc<Offloads>) -> Result<Self, OpenError> {
        let v4 =
            Socket::open((Ipv4Addr::UNSPECIFIED, port).into()).map_err(|error| open_error(port, error))?;
        let mut sockets = vec![v4];
        match Socket::open((Ipv6Addr::UNSPECIFIED, port).into()) {
            Ok(v6) => sockets.push(v6),
            Err(error @ (Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)) => {
                tracing::warn!(port, %error, "this host has no IPv6: peers are reached over IPv4 only");
            }
            Err(error) => return Err(open_error(port, error)),
        }
        enable_offloads(&sockets, &offloads);
        let capabilities = Capabilities::plain(format!("udp port {port}"), MAX_DATAGRAM);
        let mut udp = Self { sockets, turn: 0, offloads, capabilities };
        udp.note_gso();
        Ok(udp)
    }

    fn note_gso(&mut self) {
        self.capabilities.max_segments = if self.offloads.is_on(Offload::Gso) { MAX_SEGMENTS } else { 1 };
    }

    /// What any of its sockets can hold at least.
    #[must_use]
    pub fn buffers(&self) -> Option<Buffers> {
        self.sockets.iter().map(|socket| socket.buffers).reduce(Buffers::min)
    }

    /// The addresses it listens on.
    #[must_use]
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|socket| socket.local).collect()
    }
}

impl Device for Udp {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.sockets.iter().map(|socket| socket.fd.as_fd()).collect()
    }

    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        let (before, from) = self.sockets.split_at_mut(self.turn);
        for socket in from.iter_mut().chain(before) {
            socket.recv(batch)?;
        }
        self.turn = (self.turn + 1) % self.sockets.len();
        Ok(())
    }

    fn send(&mut self, batch: &mut Batch) -> io::Result<()> {
        let same_family = |a: &Packet, b: &Packet| a.address.is_ipv4() == b.address.is_ipv4();
        for run in batch.packets_mut().chunk_by_mut(same_family) {
            let ipv4 = run[0].address.is_ipv4();
            match self.sockets.iter_mut().find(|socket| socket.local.is_ipv4() == ipv4) {
                Some(socket) => socket.send(run, &self.offloads),
                None => refuse(run, DropReason::SendFailed),
            }
        }
        self.note_gso();
        Ok(())
    }
}

/// One bound socket.
struct Socket {
    fd: OwnedFd,
    local: SocketAddr,
    buffers: Buffers,
    messages: Messages,
    /// Destinations to which the kernel cannot cut a run: those datagrams go one by one.
    apart: Vec<IpAddr>,
}

impl Socket {
    fn open(local: SocketAddr) -> rustix::io::Result<Self> {
        let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = socket_with(family, SocketType::DGRAM, flags, None)?;
        if local.is_ipv6() {
            sockopt::set_ipv6_v6only(&fd, true)?;
        }
        let buffers = enlarge_buffers(&fd)?;
        forbid_fragments(&fd, local.is_ipv4()).map_err(|error| errno_of(&error))?;
        bind(&fd, &local)?;
        let local = getsockname(&fd)?.try_into()?;
        Ok(Self { fd, local, buffers, messages: Messages::new(MESSAGES), apart: vec![] })
    }

    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        while !batch.vacant().is_empty() {
            match self.messages.recv(&self.fd, batch.vacant()) {
                Ok(count) => {
                    batch.grow(count);
                    if count < MESSAGES {
                        break;
                    }
                }
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR) => {}
                    Some(Errno::BADF | Errno::NOTSOCK) => return Err(error),
                    // Nothing left, or a passing error (memory, an ICMP message): the next turn goes on.
                    _ => break,
                },
            }
        }
        Ok(())
    }

    fn send(&mut self, mut packets: &mut [Packet], offloads: &Offloads) {
        while let Some(first) = packets.first_mut() {
            if self.apart.contains(&first.address.ip()) {
                first.refused = self.send_apart(first);
                packets = &mut packets[1..];
                continue;
            }
            match self.messages.send(&self.fd, packets) {
                Ok(sent) => packets = &mut packets[sent..],
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR) => {}
                    Some(Errno::AGAIN) => return refuse(packets, DropReason::SendBlocked),
                    errno => {
                        packets[0].refused = self.send_otherwise(&packets[0], errno, offloads);
                        packets = &mut packets[1..];
                    }
                },
            }
        }
    }

    /// A run that was refused may get through in pieces: the device out there may not make the
    /// checksums that cutting needs (EIO, udp(7)). If its MTU is less than a datagram, nothing helps but
    /// smaller ones.
    fn send_otherwise(
        &mut self,
        run: &Packet,
        errno: Option<Errno>,
        offloads: &Offloads,
    ) -> Option<DropReason> {
        let is_run = run.datagram_count() > 1;
        match errno {
            Some(Errno::IO) if is_run => self.set_apart(run.address.ip(), offloads),
            Some(errno @ (Errno::INVAL | Errno::MSGSIZE)) if is_run => {
                let refused = self.send_apart(run);
                if refused != Some(DropReason::TooBig) {
                    offloads.failed(Offload::Gso, format!("toward {}: {errno}", run.address.ip()));
                }
                return refused;
            }
            errno => return Some(refusal(errno)),
        }
        self.send_apart(run)
    }

    fn set_apart(&mut self, destination: IpAddr, offloads: &Offloads) {
        let reason = format!("the device toward {destination} makes no checksums");
        if self.apart.len() < MAX_APART {
            self.apart.push(destination);
            offloads.failed(Offload::Gso, reason);
        } else {
            self.apart.clear();
            offloads.lost(Offload::Gso, reason);
        }
    }

    /// Datagram by datagram; why, if one or more could not be sent.
    fn send_apart(&self, run: &Packet) -> Option<DropReason> {
        let send = |datagram| sendto(&self.fd, datagram, SendFlags::empty(), &run.address);
        run.datagrams().filter_map(|datagram| send(datagram).err()).last().map(|errno| match errno {
            Errno::AGAIN => DropReason::SendBlocked,
            errno => refusal(Some(errno)),
        })
    }
}

fn enable_offloads(sockets: &[Socket], offloads: &Offloads) {
    let try_on_all = |offload, enable: fn(&OwnedFd) -> io::Result<()>| {
        if offloads.is_wanted(offload) {
            offloads.tried(offload, sockets.iter().try_for_each(|socket| enable(&socket.fd)));
        }
    };
    try_on_all(Offload::Gso, probe_gso);
    try_on_all(Offload::Gro, enable_gro);
}

/// Beyond the host's limit (`net.core.rmem_max`) with `CAP_NET_ADMIN`, else up to it.
fn enlarge_buffers(fd: &OwnedFd) -> rustix::io::Result<Buffers> {
    let wanted = Buffers::WANTED;
    sockopt::set_socket_recv_buffer_size_force(fd, wanted)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(fd, wanted))?;
    sockopt::set_socket_send_buffer_size_force(fd, wanted)
        .or_else(|_| sockopt::set_socket_send_buffer_size(fd, wanted))?;
    // The kernel tells twice what it was asked for, its own needs included: socket(7).
    let receive = sockopt::socket_recv_buffer_size(fd)? / 2;
    let send = sockopt::socket_send_buffer_size(fd)? / 2;
    if receive.min(send) < wanted {
        tracing::warn!(
            receive,
            send,
            wanted,
            "small socket buffers: bursts may be dropped. raise net.core.rmem_max and wmem_max with sysctl"
        );
    }
    Ok(Buffers { receive, send })
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn refuse(packets: &mut [Packet], reason: DropReason) {
    for packet in packets {
        packet.refused = Some(reason);
    }
}

fn refusal(errno: Option<Errno>) -> DropReason {
    match errno {
        Some(Errno::MSGSIZE) => DropReason::TooBig,
        Some(Errno::NOBUFS | Errno::NOMEM) => DropReason::SendBlocked,
        _ => DropReason::SendFailed,
    }
}

fn open_error(port: u16, error: Errno) -> OpenError {
    match error {
        Errno::ADDRINUSE => OpenError::new(
            format!("UDP port {port} is in use by another process"),
            format!("find it with `ss -ulpn sport = :{port}`, or choose another port"),
        ),
        Errno::ACCESS | Errno::PERM => OpenError::new(
            format!("binding UDP port {port} is not permitted"),
            "choose a port above 1023, or run with CAP_NET_BIND_SERVICE",
        ),
        error => OpenError::new(
            format!("opening UDP port {port} failed: {error}"),
            "check the host's network setup with `ip address`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(port: u16) -> Udp {
        Udp::open(port, Arc::default()).unwrap()
    }

    /// Ports of this process's own for both families.
    fn open_pair() -> (Udp, Udp) {
        (open(0), open(0))
    }

    fn receive(udp: &mut Udp, count: usize) -> Batch {
        let mut batch = Batch::new(128, 2048);
        while batch.packets().len() < count {
            udp.recv(&mut batch).unwrap();
        }
        batch
    }

    #[test]
    fn a_batch_of_both_families_arrives_in_order() {
        let (mut here, mut there) = open_pair();
        let mut batch = Batch::new(128, 2048);
        for at in 0..100_u8 {
            let family = usize::from(at / 25 % 2).min(there.sockets.len() - 1);
            let mut address = there.listening()[family];
            address.set_ip(if family == 0 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
            batch.push(&[at; 9]).unwrap().address = address;
        }
        here.send(&mut batch).unwrap();
        assert!(batch.packets().iter().all(|packet| packet.refused.is_none()));

        let received = receive(&mut there, 100);
        for ipv4 in [true, false] {
            let of_family = received.packets().iter().filter(|packet| packet.address.is_ipv4() == ipv4);
            assert!(of_family.map(|packet| packet.bytes()[0]).is_sorted());
        }
        assert!(received.packets()[0].address.ip().is_loopback());
    }

    #[test]
    fn what_cannot_be_sent_is_refused_alone() {
        let (mut here, mut there) = open_pair();
        let mut to = there.listening()[0];
        to.set_ip(Ipv4Addr::LOCALHOST.into());
        let mut batch = Batch::new(4, 70_000);
        batch.push(b"first").unwrap().address = to;
        batch.push(&vec![0; 66_000]).unwrap().address = to;
        batch.push(b"no route").unwrap().address = ([255, 255, 255, 255], 1).into();
        batch.push(b"last").unwrap().address = to;
        here.send(&mut batch).unwrap();
        let refused: Vec<_> = batch.packets().iter().map(|packet| packet.refused).collect();
        assert_eq!(refused, [None, Some(DropReason::TooBig), Some(DropReason::SendFailed), None]);
        assert_eq!(receive(&mut there, 2).packets()[1].bytes(), b"last");
    }

    fn loopback_of(udp: &Udp) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, udp.listening()[0].port()).into()
    }

    /// Sends one run of 900 bytes in datagrams of 100 and a last one of 40.
    fn send_run(here: &mut Udp, to: SocketAddr) {
        let mut batch = Batch::new(1, 2048);
        let run = batch.push(&(0..94).flat_map(|number| [number; 10]).collect::<Vec<_>>()).unwrap();
        (run.address, run.segment_len) = (to, 100);
        here.send(&mut batch).unwrap();
        assert_eq!(batch.packets()[0].refused, None);
    }

    fn received_datagrams(there: &mut Udp) -> Vec<Vec<u8>> {
        let mut batch = Batch::new(64, 65_535);
        let datagrams = |batch: &Batch| {
            batch.packets().iter().flat_map(Packet::datagrams).map(<[u8]>::to_vec).collect::<Vec<_>>()
        };
        while datagrams(&batch).len() < 10 {
            there.recv(&mut batch).unwrap();
        }
        datagrams(&batch)
    }

    #[test]
    fn a_run_arrives_as_its_datagrams_however_it_is_sent() {
        for unwanted in [vec![], vec![Offload::Gro], vec![Offload::Gso, Offload::Gro]] {
            let offloads = Arc::new(Offloads::without(&unwanted));
            let mut here = Udp::open(0, offloads.clone()).unwrap();
            let mut there = Udp::open(0, offloads).unwrap();
            let to = loopback_of(&there);
            here.sockets[0].apart.extend(unwanted.contains(&Offload::Gso).then_some(to.ip()));
            send_run(&mut here, to);
            let datagrams = received_datagrams(&mut there);
            assert_eq!(datagrams.len(), 10);
            assert!(datagrams[..9].iter().all(|datagram| datagram.len() == 100));
            assert_eq!(datagrams[9], [[90; 10], [91; 10], [92; 10], [93; 10]].concat());
        }
    }

    #[test]
    fn a_destination_without_checksums_is_served_one_by_one_and_too_many_end_it_for_all() {
        let (mut here, mut there) = open_pair();
        let offloads = here.offloads.clone();
        let to = loopback_of(&there);
        let mut batch = Batch::new(1, 2048);
        let run = batch.push(&[7; 1000]).unwrap();
        (run.address, run.segment_len) = (to, 100);
        let socket = &mut here.sockets[0];
        assert_eq!(socket.send_otherwise(&batch.packets()[0], Some(Errno::IO), &offloads), None);
        assert_eq!(received_datagrams(&mut there).len(), 10);
        assert!(socket.apart == [to.ip()] && offloads.is_on(Offload::Gso));
        for number in 0..MAX_APART {
            socket.set_apart([192, 0, 2, u8::try_from(number).unwrap()].into(), &offloads);
        }
        assert!(!offloads.is_on(Offload::Gso));
        here.note_gso();
        assert_eq!(here.capabilities().max_segments, 1);
    }

    #[test]
    fn a_port_in_use_is_an_error_with_a_fix() {
        let udp = open(0);
        let error = Udp::open(udp.listening()[0].port(), Arc::default()).err().expect("the port is in use");
        assert!(error.to_string().contains("is in use by another process. find it with"), "{error}");
    }
}
