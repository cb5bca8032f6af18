//! Waiting for descriptors (epoll) and being woken by another thread (eventfd).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

/// Most descriptors that one wait reports; others follow in the next.
const EVENTS: usize = 16;

/// Waits until some descriptor is readable. Level-triggered: what is not drained is reported again.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// A poller that watches nothing yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Watches descriptors, to be reported as `token` (below 64). Closing one ends its watch.
    pub fn watch<'a>(&self, fds: impl IntoIterator<Item = BorrowedFd<'a>>, token: u32) -> io::Result<()> {
        for fd in fds {
            epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.into()), epoll::EventFlags::IN)?;
        }
        Ok(())
    }

    /// Waits, at most so long: then it returns empty.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut events = [MaybeUninit::uninit(); EVENTS];
        loop {
            match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
                Ok((ready, _)) => {
                    let tokens = ready.iter().map(|event| { event.data }.u64());
                    return Ok(Ready(tokens.fold(0, |set, token| set | 1 << token)));
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The tokens that a wait reported.
#[derive(Debug, Clone, Copy)]
pub struct Ready(u64);

impl Ready {
    /// Whether a descriptor with this token is readable, or in error.
    #[must_use]
    pub fn has(self, token: u32) -> bool {
        self.0 & 1 << token != 0
    }
}

/// Wakes a poller from another thread. Clones wake the same one.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A waker; the poller has to watch its descriptor.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(Arc::new(eventfd(0, flags)?)))
    }

    /// Makes the descriptor readable until [`Self::reset`].
    pub fn wake(&self) {
        // Fails only if 2^64 - 2 wakes are pending, and then it is readable already.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable.
    pub fn reset(&self) {
        // Fails only if nobody woke it, and then it is unreadable already.
        let _ = rustix::io::read(&*self.0, &mut [0; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_from_another_thread_ends_the_wait() {
        let poller = Poller::new().unwrap();
        let (waker, idle) = (Waker::new().unwrap(), Waker::new().unwrap());
        poller.watch([waker.as_fd()], 3).unwrap();
        poller.watch([idle.as_fd()], 4).unwrap();
        let remote = waker.clone();
        let thread = std::thread::spawn(move || remote.wake());
        let ready = poller.wait(None).unwrap();
        thread.join().unwrap();
        assert!(ready.has(3) && !ready.has(4));

        waker.reset();
        let ready = poller.wait(Some(Duration::from_millis(1))).unwrap();
        assert!(!ready.has(3) && !ready.has(4));
        idle.wake();
        assert!(!poller.wait(None).unwrap().has(3));
    }
}
