//! Time stamps that order the handshakes of a host: TAI64N, <https://cr.yp.to/libtai/tai64.html>.

use std::time::Duration;

use crate::wire::field;

/// Bytes of a stamp.
pub const LEN: usize = 12;

/// Seconds since 1970 and nanoseconds, big-endian: compares as bytes.
pub type Tai64n = [u8; LEN];

/// What stamps are rounded down to, so that they tell nobody how this host's clock runs: 2^24 ns.
pub const GRAIN: Duration = Duration::from_nanos(1 << 24);

/// The bits that this leaves free in the nanoseconds. They say for which lane an initiation is.
const FREE: u32 = (1 << 24) - 1;

/// TAI64's label of 1970-01-01 00:00:00 TAI, and the 10 seconds that UTC was behind it.
const EPOCH: u64 = (1 << 62) + 10;

/// The stamp of a time since 1970 by the wall clock, for an initiation to a peer's lane.
#[must_use]
pub fn stamp(unix: Duration, lane: u8) -> Tai64n {
    let mut stamp = [0; LEN];
    stamp[..8].copy_from_slice(&(EPOCH + unix.as_secs()).to_be_bytes());
    let nanos = unix.subsec_nanos() & !FREE | u32::from(lane);
    stamp[8..].copy_from_slice(&nanos.to_be_bytes());
    stamp
}

/// For which lane the initiation with this stamp is. WireGuard itself has none: whatever it leaves in the
/// free bits, it is for the first.
#[must_use]
pub fn lane(stamp: &Tai64n) -> u8 {
    let nanos: u32 = u32::from_be_bytes(field(stamp, 8..LEN));
    u8::try_from(nanos & FREE).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_as_wireguard_writes_it() {
        let at = Duration::new(0x6000_0000, 0x1234_5678);
        assert_eq!(stamp(at, 0), [0x40, 0, 0, 0, 0x60, 0, 0, 0x0a, 0x12, 0, 0, 0]);
    }

    #[test]
    fn stamps_order_as_times_do() {
        let at = Duration::from_secs(1_800_000_000);
        assert!(stamp(at, 0) < stamp(at + GRAIN, 0));
        assert!(stamp(at + GRAIN, 0) < stamp(at + Duration::from_secs(1), 0));
        assert_eq!(stamp(at, 0), stamp(at + Duration::from_nanos(1), 0));
        assert!(stamp(at, 255) < stamp(at + GRAIN, 0));
    }

    #[test]
    fn the_free_bits_name_the_lane() {
        let at = Duration::new(1_800_000_000, 999_999_999);
        assert!([0, 1, 255].into_iter().all(|number| lane(&stamp(at, number)) == number));
        let mut unrounded = stamp(at, 0);
        unrounded[9..].copy_from_slice(&[0x12, 0x34, 0x01]);
        assert_eq!(lane(&unrounded), 0);
    }
}
