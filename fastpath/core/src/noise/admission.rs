//! Whose handshakes are served when there are more than can be.
//!
//! A handshake costs some 200 microseconds, and anyone who knows a host's public key can ask for one. So
//! beyond a number a second only those are served who proved their address by a cookie, and of
//! those only a few a second from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use foldhash::fast::RandomState;

/// Handshake messages a second beyond which a host is under load: a twentieth of a core.
pub const LOAD: u32 = 250;
/// Cookies a second that a host under load sends: another twentieth of a core. Under a flood beyond it,
/// who tries again every 5 seconds still gets its cookie, and packets of the others are still carried.
pub const COOKIES: u32 = 10_000;
/// Handshakes a second from one address under load,
pub const PER_SECOND: u32 = 20;
/// after so many at once.
pub const BURST: u32 = 5;
/// Addresses remembered; more are refused until some are forgotten.
const MAX_ADDRESSES: usize = 8192;

const SECOND: Duration = Duration::from_secs(1);
const PRICE: Duration = Duration::from_millis(1000 / PER_SECOND as u64);

/// Counts handshake messages.
#[derive(Debug, Default)]
pub struct Load {
    began: Duration,
    messages: u32,
    cookies: u32,
    heavy: bool,
}

impl Load {
    /// Counts a message and tells whether the host is under load: in this second or the one before.
    pub fn is_heavy(&mut self, now: Duration) -> bool {
        if now >= self.began + SECOND {
            self.heavy = self.messages > LOAD && now < self.began + 2 * SECOND;
            (self.began, self.messages, self.cookies) = (now, 0, 0);
        }
        self.messages = self.messages.saturating_add(1);
        self.heavy || self.messages > LOAD
    }

    /// Counts a message that lacks a cookie and tells whether one is sent, in the second of the last
    /// message counted.
    pub fn grants_cookie(&mut self) -> bool {
        self.cookies = self.cookies.saturating_add(1);
        self.cookies <= COOKIES
    }
}

/// Handshakes by address that proved itself.
#[derive(Debug, Default)]
pub struct Limiter {
    /// When the address has its whole burst again.
    full_at: HashMap<IpAddr, Duration, RandomState>,
}

impl Limiter {
    /// Whether another handshake from this address is served.
    pub fn admits(&mut self, source: IpAddr, now: Duration) -> bool {
        let source = subject(source);
        if self.full_at.len() >= MAX_ADDRESSES && !self.full_at.contains_key(&source) {
            self.full_at.retain(|_, full_at| *full_at > now);
            if self.full_at.len() >= MAX_ADDRESSES {
                return false;
            }
        }
        let full_at = self.full_at.entry(source).or_insert(now);
        let then = (*full_at).max(now) + PRICE;
        let admitted = then <= now + PRICE * BURST;
        if admitted {
            *full_at = then;
        }
        admitted
    }
}

/// Who holds one IPv6 address holds its whole /64.
fn subject(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(100);

    #[test]
    fn load_lasts_a_second_longer_than_the_flood() {
        let mut load = Load::default();
        let heavy: Vec<_> = (0..LOAD + 2).map(|_| load.is_heavy(START)).collect();
        assert!(!heavy[..LOAD as usize].contains(&true));
        assert!(heavy[LOAD as usize]);
        assert!(load.is_heavy(START + SECOND));
        assert!(!load.is_heavy(START + 2 * SECOND));
        assert!(!load.is_heavy(START + 60 * SECOND));
    }

    #[test]
    fn cookies_are_counted_by_the_second() {
        let mut load = Load::default();
        for now in [START, START + SECOND] {
            load.is_heavy(now);
            let granted = (0..2 * COOKIES).filter(|_| load.grants_cookie());
            assert_eq!(granted.count(), COOKIES as usize);
        }
    }

    #[test]
    fn an_address_has_a_burst_and_then_its_rate() {
        let mut limiter = Limiter::default();
        let [source, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let admitted = (0..20).filter(|_| limiter.admits(source, START)).count();
        assert_eq!(admitted, BURST as usize);
        assert!(limiter.admits(other, START));
        assert!(limiter.admits(source, START + PRICE));
        assert!(!limiter.admits(source, START + PRICE));
    }

    #[test]
    fn a_v6_network_is_one_address() {
        let mut limiter = Limiter::default();
        let admitted =
            (0..20_u32).filter(|host| limiter.admits(format!("2001:db8::{host:x}").parse().unwrap(), START));
        assert_eq!(admitted.count(), BURST as usize);
    }

    #[test]
    fn memory_is_bounded_and_freed() {
        let mut limiter = Limiter::default();
        for host in 0..20_000_u32 {
            limiter.admits(IpAddr::V4(host.into()), START);
        }
        assert_eq!(limiter.full_at.len(), MAX_ADDRESSES);
        assert!(limiter.admits(IpAddr::V4(30_000.into()), START + SECOND));
        assert_eq!(limiter.full_at.len(), 1);
    }
}
