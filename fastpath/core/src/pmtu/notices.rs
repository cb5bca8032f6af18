//! What a host is told whose packet is larger than the path: the ICMP message that a router would send.

use std::time::Duration;

use crate::wire::icmp;

/// Messages in a row, and in a second: a sender needs one, an attacker gets no more.
const BURST: u32 = 100;
const INTERVAL: Duration = Duration::from_millis(10);

/// Gives out no more messages than a router would.
#[derive(Debug)]
pub struct Notices {
    left: u32,
    refilled: Duration,
}

impl Notices {
    /// As many as there may be in a row.
    #[must_use]
    pub fn new() -> Self {
        Self { left: BURST, refilled: Duration::ZERO }
    }

    /// The message that this packet was too big for a path of `mtu` bytes; `None`: none is due.
    pub fn too_big(&mut self, packet: &[u8], mtu: u16, now: Duration) -> Option<Vec<u8>> {
        let message = icmp::too_big(packet, mtu)?;
        self.take(now).then_some(message)
    }

    fn take(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.refilled).as_nanos() / INTERVAL.as_nanos();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        if passed > 0 {
            self.left = self.left.saturating_add(passed).min(BURST);
            self.refilled = now;
        }
        let some = self.left > 0;
        self.left -= u32::from(some);
        some
    }
}

impl Default for Notices {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_answered_at_the_rate_of_a_router() {
        let mut notices = Notices::new();
        let given =
            |notices: &mut Notices, at| (0..1000).filter(|_| notices.take(Duration::from_millis(at))).count();
        assert_eq!(given(&mut notices, 0), 100);
        assert_eq!(given(&mut notices, 5), 0);
        assert_eq!(given(&mut notices, 500), 50);
        assert_eq!(given(&mut notices, 60_000), 100);
    }
}
