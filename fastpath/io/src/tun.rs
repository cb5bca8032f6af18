//! The host's side of the tunnel: a TUN interface, one IP packet a read or write.
//!
//! An interface may have several queues, one a [`Tun`]: the kernel chooses one by a flow's hash, then
//! that to which packets of the flow were written last (`tun_automq_select_queue` of drivers/net/tun.c).
//!
//! With offloads a virtio header goes before each packet, and a packet may be a super-packet. See
//! Documentation/networking/tuntap.rst and `include/uapi/linux/if_tun.h` of the kernel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use overmesh_core::drops::DropReason;
use overmesh_core::offload::virtio::{HEADER_LEN, Header, Kind};
use overmesh_core::wire::ip;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use rustix::system::uname;

use crate::device::{Batch, Capabilities, Device, OpenError, Packet};
use crate::offloads::{Offload, Offloads};

const CLONE_DEVICE: &str = "/dev/net/tun";
/// The kernel's IFNAMSIZ less the final zero.
const MAX_NAME_LEN: usize = libc::IFNAMSIZ - 1;

/// Before it, UDP super-packets vanish where they are routed on into a VXLAN or Geneve device.
const USO_SINCE: [u32; 3] = [6, 8, 5];

// TUN_F_* of linux/if_tun.h. ECN: super-packets may bear CWR, which cutting minds.
const CSUM: libc::c_uint = 0x01;
const TSO: libc::c_uint = 0x02 | 0x04 | 0x08;
const USO: libc::c_uint = 0x20 | 0x40;

/// A queue of a TUN interface. Closing the last one removes the interface, unless it was made persistent.
#[derive(Debug)]
pub struct Tun {
    file: OwnedFd,
    /// What the first queue holds of the interface as a whole.
    claim: Option<OwnedFd>,
    /// Bytes of the header before each packet; 0 without.
    prefix: usize,
    offloads: Arc<Offloads>,
    capabilities: Capabilities,
}

impl Tun {
    /// Attaches a queue to the interface; the first, 0, makes the interface if there is none of that
    /// name, and sets it up.
    ///
    /// A persistent interface (`ip tuntap add NAME mode tun multi_queue`) keeps its addresses and
    /// routes when the process ends. Without `multi_queue` it serves as well, with one queue.
    pub fn open(name: &str, queue: usize, offloads: Arc<Offloads>) -> Result<Self, OpenError> {
        check_name(name)?;
        let is_first = queue == 0;
        let claim = is_first.then(|| claim(name)).transpose().map_err(|error| open_error(name, error))?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open(CLONE_DEVICE, flags, Mode::empty()).map_err(|error| open_error(name, error))?;
        let headers = offloads.is_wanted(Offload::Tso) || offloads.is_wanted(Offload::Uso);
        if is_first {
            attach_first(&file, name, headers).map_err(|error| open_error(name, error))?;
            negotiate(&file, &offloads);
        } else {
            attach(&file, name, headers, true).map_err(|error| further_error(name, error))?;
        }
        let capabilities = Capabilities {
            takes_tcp: offloads.is_on(Offload::Tso),
            takes_udp: offloads.is_on(Offload::Uso),
            ..Capabilities::plain(name, ip::MAX_LEN)
        };
        Ok(Self { file, claim, prefix: if headers { HEADER_LEN } else { 0 }, offloads, capabilities })
    }

    fn write_packet(&mut self, packet: &mut Packet) -> io::Result<Option<DropReason>> {
        let header = packet.offload.emit();
        packet.prepend(&header[..self.prefix]);
        let written = write(&self.file, packet.bytes());
        packet.trim(self.prefix..packet.len());
        match written {
            Ok(_) => Ok(None),
            Err(Errno::INTR) => self.write_packet(packet),
            // The file outlives the interface, and says so with this error only.
            Err(error @ Errno::BADFD) => Err(error.into()),
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => Ok(Some(DropReason::DeviceFull)),
            Err(Errno::IO) => Ok(Some(DropReason::DeviceDown)),
            Err(error) => {
                self.lose(&packet.offload, error);
                Ok(Some(DropReason::DeviceFailed))
            }
        }
    }

    /// Some stable kernels refuse what they should take (kernel commit 89add40066f9): what was
    /// refused once is not offered again.
    fn lose(&mut self, refused: &Header, error: Errno) {
        match refused.segments.map(|segments| segments.kind) {
            None => return,
            Some(Kind::Udp) => self.offloads.lost(Offload::Uso, error),
            Some(Kind::Tcp4 | Kind::Tcp6) => self.offloads.lost(Offload::Tso, error),
        }
        self.capabilities.takes_tcp = self.offloads.is_on(Offload::Tso);
        self.capabilities.takes_udp = self.offloads.is_on(Offload::Uso);
    }
}

impl Drop for Tun {
    /// A persistent interface would go on to give super-packets to who does not expect them.
    fn drop(&mut self) {
        if self.claim.is_some() {
            let _ = set_offloads(&self.file, 0);
        }
    }
}

impl Device for Tun {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.file.as_fd()]
    }

    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        while let Some(packet) = batch.vacant().first_mut() {
            match read(&self.file, packet.room_after(self.prefix)) {
                Ok(len) => {
                    packet.set_len(len.saturating_sub(self.prefix));
                    take_header(packet, self.prefix);
                    batch.grow(1);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn send(&mut self, batch: &mut Batch) -> io::Result<()> {
        for packet in batch.packets_mut() {
            packet.refused = self.write_packet(packet)?;
        }
        Ok(())
    }
}

/// Reads the header that precedes a packet. One that makes no sense leaves no packet: it is dropped
/// as malformed further on.
fn take_header(packet: &mut Packet, prefix: usize) {
    if let Some(header) = packet.room_after(prefix).first_chunk::<HEADER_LEN>().filter(|_| prefix > 0) {
        match Header::parse(header) {
            Ok(header) => packet.offload = header,
            Err(_) => packet.set_len(0),
        }
    }
}

fn check_name(name: &str) -> Result<(), OpenError> {
    if name.is_empty() || name.len() > MAX_NAME_LEN {
        return Err(OpenError::new(
            format!("interface name {name:?} has {} characters", name.len()),
            format!("choose one of 1 to {MAX_NAME_LEN}"),
        ));
    }
    // The kernel would replace %d by a number of its choice.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if !name.bytes().all(plain) || name.starts_with('.') {
        return Err(OpenError::new(
            format!("interface name {name:?} is not usable"),
            "choose one of letters, digits, '-', '_' and '.'",
        ));
    }
    Ok(())
}

/// Keeps other fastpaths from the interface: the kernel would let them attach queues of their own, and
/// give them a part of the flows. The name is in the abstract namespace of unix(7), which belongs to a
/// network namespace as the interface does.
fn claim(name: &str) -> rustix::io::Result<OwnedFd> {
    let claimed = SocketAddrUnix::new_abstract_name(format!("overmesh-fastpath/{name}").as_bytes())?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &claimed).map_err(|error| if error == Errno::ADDRINUSE { Errno::BUSY } else { error })?;
    Ok(socket)
}

/// An interface that was made with a single queue takes only who asks for that.
fn attach_first(file: &OwnedFd, name: &str, headers: bool) -> rustix::io::Result<()> {
    match attach(file, name, headers, true) {
        Err(Errno::INVAL) => attach(file, name, headers, false)?,
        outcome => outcome?,
    }
    if headers { set_header_len(file) } else { Ok(()) }
}

/// Works on an interface that exists, too: whether there are headers is for who attaches to say.
fn attach(file: &OwnedFd, name: &str, headers: bool, multi_queue: bool) -> rustix::io::Result<()> {
    let flags = libc::IFF_TUN
        | libc::IFF_NO_PI
        | if headers { libc::IFF_VNET_HDR } else { 0 }
        | if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: flags.try_into().expect("the flags fit the field"),
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: TUNSETIFF reads and writes one ifreq; `request` is one and lives through the call.
    outcome(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// Whoever had the interface before may have chosen another.
fn set_header_len(file: &OwnedFd) -> rustix::io::Result<()> {
    let len = libc::c_int::try_from(HEADER_LEN).expect("a header is short");
    // SAFETY: TUNSETVNETHDRSZ reads one int; `len` is one and lives through the call.
    outcome(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
}

/// Asks for one offload after the other, so that one that the kernel lacks does not cost the others.
/// What is not asked for is taken back: a persistent interface keeps what it was told.
fn negotiate(file: &OwnedFd, offloads: &Offloads) {
    let mut had = 0;
    let _ = set_offloads(file, had);
    for (offload, bits) in [(Offload::Tso, TSO), (Offload::Uso, USO)] {
        if offloads.is_wanted(offload) {
            let outcome = usable(offload)
                .and_then(|()| set_offloads(file, had | CSUM | bits).map_err(|error| error.to_string()));
            had |= if outcome.is_ok() { CSUM | bits } else { 0 };
            offloads.tried(offload, outcome);
        }
    }
}

fn usable(offload: Offload) -> Result<(), String> {
    let release = uname().release().to_string_lossy().into_owned();
    if offload == Offload::Uso && version(&release) < USO_SINCE {
        return Err(format!("kernel {release} may lose such packets, before 6.8.5"));
    }
    Ok(())
}

/// The numbers that a kernel's release begins with.
fn version(release: &str) -> [u32; 3] {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    [(); 3].map(|()| numbers.next().unwrap_or(0))
}

fn set_offloads(file: &OwnedFd, bits: libc::c_uint) -> rustix::io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    outcome(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) })
}

fn outcome(result: libc::c_int) -> rustix::io::Result<()> {
    if result < 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(())
}

fn open_error(name: &str, error: Errno) -> OpenError {
    match error {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => OpenError::new(
            format!("this host has no {CLONE_DEVICE}"),
            "load it with `modprobe tun`, or give the container that device",
        ),
        Errno::PERM | Errno::ACCESS => OpenError::new(
            format!("opening TUN interface {name} is not permitted"),
            "run as root or with CAP_NET_ADMIN",
        ),
        Errno::BUSY => OpenError::new(
            format!("interface {name} is in use by another process"),
            "stop that process, or choose another interface name",
        ),
        Errno::INVAL => OpenError::new(
            format!("interface {name} exists and is not a TUN interface"),
            format!("remove it with `ip link delete {name}`, or choose another name"),
        ),
        error => OpenError::new(
            format!("opening TUN interface {name} failed: {error}"),
            "look into the kernel log with `dmesg`",
        ),
    }
}

/// As [`open_error`], for a queue that is not the first.
fn further_error(name: &str, error: Errno) -> OpenError {
    if error != Errno::INVAL {
        return open_error(name, error);
    }
    OpenError::new(
        format!("interface {name} has a single queue, and every lane needs its own"),
        format!("ask for one lane, or remove it with `ip link delete {name}`: it is made anew with several"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_names_are_refused_before_the_kernel_sees_them() {
        for name in ["", "sixteen-letters-", "om%d", "a/b", "a b", ".."] {
            let error = Tun::open(name, 0, Arc::default()).unwrap_err();
            assert!(error.cause.contains("interface name"), "{error}");
        }
    }

    #[test]
    fn releases_are_compared_by_their_numbers() {
        assert_eq!(version("6.18.44-fc-v669"), [6, 18, 44]);
        assert!(version("6.8.0-31-generic") < USO_SINCE && version("6.8.12") > USO_SINCE);
        assert!(version("6.8") < USO_SINCE && version("10.0-rc1") > USO_SINCE);
    }

    #[test]
    fn every_open_error_names_cause_and_fix() {
        for error in [Errno::NOENT, Errno::PERM, Errno::BUSY, Errno::INVAL, Errno::IO] {
            for error in [open_error("om0", error), further_error("om0", error)] {
                assert!(!error.cause.is_empty() && !error.fix.is_empty());
            }
        }
    }
}
