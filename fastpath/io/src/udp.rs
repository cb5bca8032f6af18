//! The underlay's side of the tunnel: kernel UDP sockets, one a family, on every local address.
//!
//! Which local address a datagram leaves from is the kernel's choice, by its routes.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use overmesh_core::drops::DropReason;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};

use crate::device::{Batch, Capabilities, Device, OpenError, Packet};
use crate::messages::Messages;

/// Datagrams a system call.
const MESSAGES: usize = 64;
/// A UDP datagram cannot be larger.
const MAX_DATAGRAM: usize = 65_527;
/// Asked of the kernel for each direction: bursts of many senders have to wait somewhere.
const SOCKET_BUFFER: usize = 8 << 20;

/// The UDP sockets of one port.
pub struct Udp {
    sockets: Vec<Socket>,
    /// The socket that `recv` asks first: taking turns, none can starve the other.
    turn: usize,
    capabilities: Capabilities,
}

impl Udp {
    /// Binds `port` on all IPv4 and IPv6 addresses; 0 lets the kernel choose, for each family.
    ///
    /// A host without IPv6 gets IPv4 only; that is logged.
    pub fn open(port: u16) -> Result<Self, OpenError> {
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
        let capabilities = Capabilities { name: format!("udp port {port}"), max_packet: MAX_DATAGRAM };
        Ok(Self { sockets, turn: 0, capabilities })
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
                Some(socket) => socket.send(run),
                None => refuse(run, DropReason::SendFailed),
            }
        }
        Ok(())
    }
}

/// One bound socket.
struct Socket {
    fd: OwnedFd,
    local: SocketAddr,
    messages: Messages,
}

impl Socket {
    fn open(local: SocketAddr) -> rustix::io::Result<Self> {
        let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = socket_with(family, SocketType::DGRAM, flags, None)?;
        if local.is_ipv6() {
            sockopt::set_ipv6_v6only(&fd, true)?;
        }
        enlarge_buffers(&fd)?;
        bind(&fd, &local)?;
        let local = getsockname(&fd)?.try_into()?;
        Ok(Self { fd, local, messages: Messages::new(MESSAGES) })
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

    fn send(&mut self, mut packets: &mut [Packet]) {
        while !packets.is_empty() {
            match self.messages.send(&self.fd, packets) {
                Ok(sent) => packets = &mut packets[sent..],
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR) => {}
                    Some(Errno::AGAIN) => return refuse(packets, DropReason::SendBlocked),
                    errno => {
                        refuse(&mut packets[..1], refusal(errno));
                        packets = &mut packets[1..];
                    }
                },
            }
        }
    }
}

/// Beyond the host's limit (`net.core.rmem_max`) with `CAP_NET_ADMIN`, else up to it.
fn enlarge_buffers(fd: &OwnedFd) -> rustix::io::Result<()> {
    sockopt::set_socket_recv_buffer_size_force(fd, SOCKET_BUFFER)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(fd, SOCKET_BUFFER))?;
    sockopt::set_socket_send_buffer_size_force(fd, SOCKET_BUFFER)
        .or_else(|_| sockopt::set_socket_send_buffer_size(fd, SOCKET_BUFFER))
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

    /// A port of this process's own for both families.
    fn open_pair() -> (Udp, Udp) {
        (Udp::open(0).unwrap(), Udp::open(0).unwrap())
    }

    fn receive(udp: &mut Udp, count: usize) -> Batch {
        let mut batch = Batch::new(2 * MESSAGES, 2048);
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

    #[test]
    fn a_port_in_use_is_an_error_with_a_fix() {
        let udp = Udp::open(0).unwrap();
        let error = Udp::open(udp.listening()[0].port()).err().expect("the port is in use");
        assert!(error.to_string().contains("is in use by another process. find it with"), "{error}");
    }
}
