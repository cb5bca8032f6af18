//! Waiting for descriptors (poll(2)) and being woken by another thread (eventfd).
//!
//! epoll(7) would stay in the wait queues of what it watches, and the kernel would call it for every
//! packet that arrives and every one that has left, while the lane is busy with others. poll is in there
//! only while it sleeps.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::null;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

/// Waits until some descriptor is readable. Level-triggered: what is not drained is reported again.
#[derive(Debug, Default)]
pub struct Poller {
    watched: Vec<libc::pollfd>,
    /// What each is reported as.
    tokens: Vec<u32>,
}

impl Poller {
    /// Watches these descriptors as `token` (below 64), in place of those watched as that before. They have
    /// to stay open as long.
    pub fn watch<'a>(&mut self, token: u32, fds: impl IntoIterator<Item = BorrowedFd<'a>>) {
        let mut others = self.tokens.iter().map(|other| *other != token);
        self.watched.retain(|_| others.next().is_some_and(|is_other| is_other));
        self.tokens.retain(|other| *other != token);
        let readable = |fd: BorrowedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        self.watched.extend(fds.into_iter().map(readable));
        self.tokens.resize(self.watched.len(), token);
    }

    /// Waits, at most so long: then it returns empty.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Ready> {
        let timeout = timeout.map(timespec);
        let timeout = timeout.as_ref().map_or(null(), |timeout| &raw const *timeout);
        let count = self.watched.len() as libc::nfds_t;
        loop {
            // SAFETY: the kernel reads and writes `count` entries of `watched` and reads the timeout; both
            // live through the call.
            let ready = unsafe { libc::ppoll(self.watched.as_mut_ptr(), count, timeout, null()) };
            if ready >= 0 {
                return Ok(self.ready());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn ready(&self) -> Ready {
        let both = self.watched.iter().zip(&self.tokens);
        let tokens = both.filter(|(watched, _)| watched.revents != 0).map(|(_, token)| *token);
        Ready(tokens.fold(0, |set, token| set | 1 << token))
    }
}

fn timespec(timeout: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
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
        let mut poller = Poller::default();
        let (waker, idle) = (Waker::new().unwrap(), Waker::new().unwrap());
        poller.watch(3, [waker.as_fd()]);
        poller.watch(4, [idle.as_fd()]);
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

        poller.watch(4, [waker.as_fd()]);
        let ready = poller.wait(Some(Duration::ZERO)).unwrap();
        assert!(!ready.has(3) && !ready.has(4), "the one that is awake is watched no more");
        waker.wake();
        let ready = poller.wait(None).unwrap();
        assert!(ready.has(3) && ready.has(4));
    }
}
