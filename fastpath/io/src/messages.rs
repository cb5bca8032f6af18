//! recvmmsg(2) and sendmmsg(2): many runs of datagrams a call, cut and merged by the kernel (udp(7),
//! `UDP_SEGMENT` and `UDP_GRO`).

use std::io;
use std::mem::zeroed;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::null_mut;

use crate::device::Packet;

/// The arrays that the kernel wants, kept between calls so that they are allocated once.
///
/// Every call sets the pointers that it uses; none is followed after its call.
pub(crate) struct Messages {
    headers: Box<[libc::mmsghdr]>,
    buffers: Box<[libc::iovec]>,
    addresses: Box<[Address]>,
    controls: Box<[Control]>,
}

// SAFETY: the pointers inside are set and followed within one call, which has `&mut self`.
unsafe impl Send for Messages {}

impl Messages {
    /// For up to `count` datagrams a call.
    pub(crate) fn new(count: usize) -> Self {
        // SAFETY: for these plain C structs all zero bytes are a value.
        let (header, buffer, address, control) = unsafe { (zeroed(), zeroed(), zeroed(), zeroed()) };
        Self {
            headers: vec![header; count].into(),
            buffers: vec![buffer; count].into(),
            addresses: vec![address; count].into(),
            controls: vec![control; count].into(),
        }
    }

    /// Receives into the first packets; returns how many.
    pub(crate) fn recv(&mut self, socket: &OwnedFd, packets: &mut [Packet]) -> io::Result<usize> {
        let count = packets.len().min(self.headers.len());
        for (at, packet) in packets[..count].iter_mut().enumerate() {
            self.point(at, packet.room(), c::ADDRESS_LEN, c::CONTROL_LEN);
        }
        let headers = self.headers.as_mut_ptr();
        // SAFETY: the first `count` headers point to rooms, addresses and controls that outlive the call.
        let received = unsafe { libc::recvmmsg(socket.as_raw_fd(), headers, c_count(count), 0, null_mut()) };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (at, packet) in packets[..received].iter_mut().enumerate() {
            let len = self.headers[at].msg_len as usize;
            packet.set_len(len);
            packet.address = decode(&self.addresses[at]);
            let written = self.headers[at].msg_hdr.msg_controllen;
            packet.segment_len =
                self.controls[at].merged_from(written).filter(|size| *size < len).unwrap_or(0);
        }
        Ok(received)
    }

    /// Sends the first packets; returns how many. An error concerns the first one.
    pub(crate) fn send(&mut self, socket: &OwnedFd, packets: &mut [Packet]) -> io::Result<usize> {
        let count = packets.len().min(self.headers.len());
        for (at, packet) in packets[..count].iter_mut().enumerate() {
            let address_len = encode(packet.address, &mut self.addresses[at]);
            let cut = if packet.datagram_count() > 1 { c::CONTROL_LEN } else { 0 };
            self.controls[at] = Control::cut_into(packet.segment_len);
            self.point(at, packet.bytes_mut(), address_len, cut);
        }
        let headers = self.headers.as_mut_ptr();
        // SAFETY: the first `count` headers point to packets, addresses and controls that outlive the call.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers, c_count(count), 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn point(&mut self, at: usize, bytes: &mut [u8], address_len: libc::socklen_t, control_len: usize) {
        self.buffers[at] = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let header = &mut self.headers[at].msg_hdr;
        header.msg_name = (&raw mut self.addresses[at]).cast();
        header.msg_namelen = address_len;
        header.msg_iov = &raw mut self.buffers[at];
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut self.controls[at]).cast();
        header.msg_controllen = control_len;
    }
}

/// Turns the merging of received datagrams on.
pub(crate) fn enable_gro(socket: &OwnedFd) -> io::Result<()> {
    set_udp_option(socket, libc::UDP_GRO, 1)
}

/// Whether the kernel knows how to cut what is sent. Sets what is so anyway: not to, unless told.
pub(crate) fn probe_gso(socket: &OwnedFd) -> io::Result<()> {
    set_udp_option(socket, libc::UDP_SEGMENT, 0)
}

/// Has what is sent arrive whole or not at all: no fragments, here or along the way. What routers say
/// of the path is not listened to, as anyone can say it; only the device's own MTU counts. `IP_MTU_DISCOVER`
/// in ip(7), `IPV6_MTU_DISCOVER` in ipv6(7), RFC 3542 section 11.2.
pub(crate) fn forbid_fragments(socket: &OwnedFd, is_ipv4: bool) -> io::Result<()> {
    if is_ipv4 {
        return set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE);
    }
    set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
    set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)
}

fn set_udp_option(socket: &OwnedFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, option, value)
}

fn set_option(
    socket: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the kernel reads one int; `value` is one and lives through the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), c::INT_LEN) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Room for one control message that says how long the datagrams of a run are: to the kernel in 16
/// bits, from the kernel in an int, in the same aligned room.
#[derive(Clone, Copy)]
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    value: [u8; 8],
}

impl Control {
    fn cut_into(segment_len: usize) -> Self {
        let size = u16::try_from(segment_len).unwrap_or(0);
        let mut value = [0; 8];
        value[..2].copy_from_slice(&size.to_ne_bytes());
        let len = size_of::<libc::cmsghdr>() + size_of_val(&size);
        let header = libc::cmsghdr { cmsg_len: len, cmsg_level: libc::SOL_UDP, cmsg_type: libc::UDP_SEGMENT };
        Self { header, value }
    }

    /// What the kernel wrote, if it wrote that.
    fn merged_from(&self, written: usize) -> Option<usize> {
        let is_size = written >= size_of::<libc::cmsghdr>() + size_of::<libc::c_int>()
            && self.header.cmsg_level == libc::SOL_UDP
            && self.header.cmsg_type == libc::UDP_GRO;
        let [a, b, c, d, ..] = self.value;
        usize::try_from(libc::c_int::from_ne_bytes([a, b, c, d])).ok().filter(|size| is_size && *size > 0)
    }
}

fn c_count(count: usize) -> libc::c_uint {
    libc::c_uint::try_from(count).expect("a batch has few packets")
}

/// A socket address as the kernel writes it; the first field of both tells which it is.
#[derive(Clone, Copy)]
#[repr(C)]
union Address {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

// Small constants, which the types of the C interface take in another width.
#[allow(clippy::cast_possible_truncation)]
mod c {
    pub(super) const V4_FAMILY: libc::sa_family_t = libc::AF_INET as libc::sa_family_t;
    pub(super) const V6_FAMILY: libc::sa_family_t = libc::AF_INET6 as libc::sa_family_t;
    pub(super) const V4_LEN: libc::socklen_t = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    pub(super) const ADDRESS_LEN: libc::socklen_t = size_of::<super::Address>() as libc::socklen_t;
    pub(super) const INT_LEN: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;
    pub(super) const CONTROL_LEN: usize = size_of::<super::Control>();
}

/// Writes an address; returns how many bytes of it count.
fn encode(address: SocketAddr, to: &mut Address) -> libc::socklen_t {
    match address {
        SocketAddr::V4(address) => {
            to.v4 = libc::sockaddr_in {
                sin_family: c::V4_FAMILY,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                sin_zero: [0; 8],
            };
            c::V4_LEN
        }
        SocketAddr::V6(address) => {
            to.v6 = libc::sockaddr_in6 {
                sin6_family: c::V6_FAMILY,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            };
            c::ADDRESS_LEN
        }
    }
}

fn decode(address: &Address) -> SocketAddr {
    // SAFETY: both fields begin with the family, and all bytes of both are plain integers.
    let (v4, v6) = unsafe { (address.v4, address.v6) };
    if v4.sin_family == c::V6_FAMILY {
        let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
        SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), v6.sin6_flowinfo, v6.sin6_scope_id).into()
    } else {
        let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
        (ip, u16::from_be(v4.sin_port)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_form() {
        for text in ["192.0.2.1:6081", "[2001:db8::1]:6081", "[fe80::1%7]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            // SAFETY: all zero bytes are a value of this union of plain C structs.
            let mut raw = unsafe { zeroed() };
            encode(address, &mut raw);
            assert_eq!(decode(&raw), address);
        }
    }
}
