//! Two devices joined in memory: what one sends the other receives. For tests and simulations.
//!
//! A run of datagrams arrives as single ones.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use overmesh_core::drops::DropReason;
use overmesh_core::wire::ip;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use crate::device::{Batch, Capabilities, Device};

/// As many as the kernel's UDP takes.
const MAX_SEGMENTS: usize = 64;

/// One end of the pair. It has a kernel socket inside, so that it can be polled as any device.
#[derive(Debug)]
pub struct Loopback {
    socket: OwnedFd,
    peer: SocketAddr,
    capabilities: Capabilities,
}

/// Two joined devices. Packets of the first arrive from address `a`, those of the second from `b`;
/// where they are addressed to does not matter.
pub fn pair(a: SocketAddr, b: SocketAddr) -> io::Result<(Loopback, Loopback)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (first, second) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok((Loopback::new(first, b), Loopback::new(second, a)))
}

impl Loopback {
    fn new(socket: OwnedFd, peer: SocketAddr) -> Self {
        let capabilities =
            Capabilities { max_segments: MAX_SEGMENTS, ..Capabilities::plain("loopback", ip::MAX_LEN) };
        Self { socket, peer, capabilities }
    }
}

impl Device for Loopback {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.socket.as_fd()]
    }

    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        while let Some(packet) = batch.vacant().first_mut() {
            match recv(&self.socket, packet.room(), RecvFlags::empty()) {
                Ok((_, 0)) => return Err(io::ErrorKind::ConnectionReset.into()),
                Ok((_, len)) => {
                    packet.set_len(len);
                    packet.address = self.peer;
                    batch.grow(1);
                }
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn send(&mut self, batch: &mut Batch) -> io::Result<()> {
        for packet in batch.packets_mut() {
            let pass = |datagram| send(&self.socket, datagram, SendFlags::NOSIGNAL).map(drop);
            let outcome = packet.datagrams().try_for_each(pass);
            match outcome {
                Ok(()) => {}
                Err(Errno::AGAIN) => packet.refused = Some(DropReason::SendBlocked),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_end_sends_the_other_receives() {
        let [a, b] = ["192.0.2.1:1", "192.0.2.2:2"].map(|text| text.parse().unwrap());
        let (mut first, mut second) = pair(a, b).unwrap();
        let mut batch = Batch::new(4, ip::MAX_LEN);
        batch.push(b"one").unwrap();
        batch.push(b"two").unwrap();
        first.send(&mut batch).unwrap();

        batch.clear();
        second.recv(&mut batch).unwrap();
        let received: Vec<_> =
            batch.packets().iter().map(|packet| (packet.bytes(), packet.address)).collect();
        assert_eq!(received, [(&b"one"[..], a), (&b"two"[..], a)]);
    }

    #[test]
    fn a_full_queue_refuses_and_a_closed_one_is_lost() {
        let address = "192.0.2.1:1".parse().unwrap();
        let (mut first, second) = pair(address, address).unwrap();
        let mut batch = Batch::new(64, 20_000);
        while batch.push(&vec![0; 20_000]).is_some() {}
        first.send(&mut batch).unwrap();
        assert_eq!(batch.packets()[63].refused, Some(DropReason::SendBlocked));
        drop(second);
        assert!(first.send(&mut batch).is_err());
        batch.clear();
        assert!(first.recv(&mut batch).is_err());
    }
}
