//! The host's side of the tunnel: a TUN interface, one IP packet a read or write.
//!
//! See Documentation/networking/tuntap.rst of the kernel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use overmesh_core::drops::DropReason;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};

use crate::device::{Batch, Capabilities, Device, OpenError, Packet};

const CLONE_DEVICE: &str = "/dev/net/tun";
/// The kernel's IFNAMSIZ less the final zero.
const MAX_NAME_LEN: usize = libc::IFNAMSIZ - 1;
/// An IP packet cannot be larger.
const MAX_PACKET: usize = 65_535;

/// An open TUN interface. Closing it removes the interface, unless it was made persistent.
#[derive(Debug)]
pub struct Tun {
    file: OwnedFd,
    capabilities: Capabilities,
}

impl Tun {
    /// Attaches to the interface, or makes it if there is none of that name.
    ///
    /// A persistent interface (`ip tuntap add NAME mode tun`) keeps its addresses and routes when
    /// the process ends.
    pub fn open(name: &str) -> Result<Self, OpenError> {
        check_name(name)?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open(CLONE_DEVICE, flags, Mode::empty()).map_err(|error| open_error(name, error))?;
        attach(&file, name).map_err(|error| open_error(name, error))?;
        Ok(Self { file, capabilities: Capabilities { name: name.into(), max_packet: MAX_PACKET } })
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
            match read(&self.file, packet.room()) {
                Ok(len) => {
                    packet.set_len(len);
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
            packet.refused = write_packet(&self.file, packet)?;
        }
        Ok(())
    }
}

fn write_packet(file: &OwnedFd, packet: &Packet) -> io::Result<Option<DropReason>> {
    loop {
        return match write(file, packet.bytes()) {
            Ok(_) => Ok(None),
            Err(Errno::INTR) => continue,
            // The file outlives the interface, and says so with this error only.
            Err(error @ Errno::BADFD) => Err(error.into()),
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => Ok(Some(DropReason::DeviceFull)),
            Err(Errno::IO) => Ok(Some(DropReason::DeviceDown)),
            Err(_) => Ok(Some(DropReason::DeviceFailed)),
        };
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

fn attach(file: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI).try_into().expect("the flags fit the field"),
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: TUNSETIFF reads and writes one ifreq; `request` is one and lives through the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
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
            format!("interface {name} exists and is not a single-queue TUN interface"),
            format!("remove it with `ip link delete {name}`, or choose another name"),
        ),
        error => OpenError::new(
            format!("opening TUN interface {name} failed: {error}"),
            "look into the kernel log with `dmesg`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_names_are_refused_before_the_kernel_sees_them() {
        for name in ["", "sixteen-letters-", "om%d", "a/b", "a b", ".."] {
            let error = Tun::open(name).unwrap_err();
            assert!(error.cause.contains("interface name"), "{error}");
        }
    }

    #[test]
    fn every_open_error_names_cause_and_fix() {
        for error in [Errno::NOENT, Errno::PERM, Errno::BUSY, Errno::INVAL, Errno::IO] {
            let error = open_error("om0", error);
            assert!(!error.cause.is_empty() && !error.fix.is_empty());
        }
    }
}
