//! Time stamps that order the handshakes of a host: TAI64N, <https://cr.yp.to/libtai/tai64.html>.

use std::time::Duration;

/// Bytes of a stamp.
pub const LEN: usize = 12;

/// Seconds since 1970 and nanoseconds, big-endian: compares as bytes.
pub type Tai64n = [u8; LEN];

/// What stamps are rounded down to, so that they tell nobody how this host's clock runs: 2^24 ns.
pub const GRAIN: Duration = Duration::from_nanos(1 << 24);

/// TAI64's label of 1970-01-01 00:00:00 TAI, and the 10 seconds that UTC was behind it.
const EPOCH: u64 = (1 << 62) + 10;

/// The stamp of a time since 1970 by the wall clock.
#[must_use]
pub fn stamp(unix: Duration) -> Tai64n {
    let mut stamp = [0; LEN];
    stamp[..8].copy_from_slice(&(EPOCH + unix.as_secs()).to_be_bytes());
    let nanos = unix.subsec_nanos() & !0x00ff_ffff;
    stamp[8..].copy_from_slice(&nanos.to_be_bytes());
    stamp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_as_wireguard_writes_it() {
        let at = Duration::new(0x6000_0000, 0x1234_5678);
        assert_eq!(stamp(at), [0x40, 0, 0, 0, 0x60, 0, 0, 0x0a, 0x12, 0, 0, 0]);
    }

    #[test]
    fn stamps_order_as_times_do() {
        let at = Duration::from_secs(1_800_000_000);
        assert!(stamp(at) < stamp(at + GRAIN));
        assert!(stamp(at + GRAIN) < stamp(at + Duration::from_secs(1)));
        assert_eq!(stamp(at), stamp(at + Duration::from_nanos(1)));
    }
}
