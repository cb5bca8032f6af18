//! "Too big": what a router says of a packet that does not fit the next link. ICMP "fragmentation needed"
//! (RFC 792, with the MTU as RFC 1191 section 4 has it) and `ICMPv6` "packet too big" (RFC 4443 section 3.2).
//!
//! ```text
//! |     Type      |     Code      |          Checksum             |
//! |    zero (ICMP), upper half    |             MTU               |
//! |     As much of the packet as fits                             |
//! ```

use super::ip::{self, V4_HEADER_LEN, V6_HEADER_LEN};
use crate::offload::checksum::Sum;

const ICMP_HEADER_LEN: usize = 8;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const TTL: u8 = 64;
/// No message is larger: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c).
const V4_MOST: usize = 576;
const V6_MOST: u16 = 1280;

/// The message about `packet`, a whole IP packet, to its sender. `mtu` is that of the path.
///
/// It comes from the packet's destination: an address that its sender's host routes to where the message
/// comes from, and that is none of its own, so it is let in. `None`: no message may be sent about this packet.
#[must_use]
pub fn too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let checked = ip::Packet::new_checked(packet).ok()?;
    if checked.source().is_multicast() || checked.source().is_unspecified() {
        return None;
    }
    match packet[0] >> 4 {
        4 => v4_too_big(packet, mtu),
        _ => v6_too_big(packet, mtu),
    }
}

fn v4_too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let is_later_fragment = packet[6] & 0x1f != 0 || packet[7] != 0;
    if is_later_fragment || packet[9] == ICMP && !is_query(packet[4 * usize::from(packet[0] & 15)..].first())
    {
        return None;
    }
    let mut icmp = vec![3, 4, 0, 0, 0, 0];
    icmp.extend(mtu.to_be_bytes());
    icmp.extend(&packet[..packet.len().min(V4_MOST - V4_HEADER_LEN - ICMP_HEADER_LEN)]);
    let checksum = Sum::default().add(&icmp).complement();
    icmp[2..4].copy_from_slice(&checksum);

    let mut message = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, TTL, ICMP, 0, 0];
    message[2..4].copy_from_slice(&length(V4_HEADER_LEN + icmp.len()));
    message.extend(&packet[16..20]);
    message.extend(&packet[12..16]);
    let checksum = Sum::default().add(&message).complement();
    message[10..12].copy_from_slice(&checksum);
    message.extend(icmp);
    Some(message)
}

fn v6_too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let is_error = packet[6] == ICMPV6 && packet.get(V6_HEADER_LEN).is_none_or(|kind| *kind < 128);
    if is_error {
        return None;
    }
    let mut icmp = vec![2, 0, 0, 0, 0, 0];
    // Less may not be said (RFC 8200 section 5), and would not be heard.
    icmp.extend(mtu.max(V6_MOST).to_be_bytes());
    icmp.extend(&packet[..packet.len().min(usize::from(V6_MOST) - V6_HEADER_LEN - ICMP_HEADER_LEN)]);

    let mut message = vec![0x60, 0, 0, 0];
    message.extend(length(icmp.len()));
    message.extend([ICMPV6, TTL]);
    message.extend(&packet[24..40]);
    message.extend(&packet[8..24]);
    let checksum = Sum::default().add_pseudo(&message[8..], ICMPV6, icmp.len()).add(&icmp).complement();
    icmp[2..4].copy_from_slice(&checksum);
    message.extend(icmp);
    Some(message)
}

/// ICMP messages that are no errors: about errors none is sent (RFC 1122 section 3.2.2).
fn is_query(kind: Option<&u8>) -> bool {
    kind.is_some_and(|kind| !matches!(kind, 3 | 4 | 5 | 11 | 12))
}

#[allow(clippy::cast_possible_truncation, reason = "a message has at most 1280 bytes")]
fn length(len: usize) -> [u8; 2] {
    (len as u16).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = ip::emit([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), payload);
        packet[9] = protocol;
        packet
    }

    fn packet6(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = ip::emit("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap(), payload);
        packet[6] = protocol;
        packet
    }

    #[test]
    fn a_message_goes_back_and_quotes_the_packet() {
        let sent = packet(17, &[7; 1400]);
        let message = too_big(&sent, 1372).unwrap();
        assert_eq!(message.len(), 576);
        assert_eq!(message[12..20], [10, 0, 0, 2, 10, 0, 0, 1]);
        assert_eq!(message[20..22], [3, 4]);
        assert_eq!(message[24..28], [0, 0, 5, 0x5c]);
        assert_eq!(message[28..], sent[..548]);
        assert!(Sum::default().add(&message[..20]).is_intact());
        assert!(Sum::default().add(&message[20..]).is_intact());
    }

    #[test]
    fn the_same_for_ipv6_which_is_not_told_less_than_1280() {
        let sent = packet6(17, &[7; 1400]);
        for (mtu, said) in [(1372_u16, 1372_u16), (1000, 1280)] {
            let message = too_big(&sent, mtu).unwrap();
            assert_eq!(message.len(), 1280);
            assert_eq!(message[8..24], sent[24..40]);
            assert_eq!(message[40..42], [2, 0]);
            assert_eq!(message[44..48], u32::from(said).to_be_bytes());
            let sum = Sum::default().add_pseudo(&message[8..40], ICMPV6, message.len() - 40);
            assert!(sum.add(&message[40..]).is_intact());
        }
    }

    #[test]
    fn of_errors_and_later_fragments_nothing_is_said() {
        assert!(too_big(&packet(1, &[8; 1400]), 1300).is_some());
        assert!(too_big(&packet(1, &[3; 1400]), 1300).is_none());
        assert!(too_big(&packet6(58, &[128; 1400]), 1300).is_some());
        assert!(too_big(&packet6(58, &[2; 1400]), 1300).is_none());
        let mut fragment = packet(17, &[0; 1400]);
        fragment[7] = 1;
        assert!(too_big(&fragment, 1300).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..2000), mtu: u16) {
            if let Some(message) = too_big(&bytes, mtu) {
                prop_assert!(ip::Packet::new_checked(&message).is_ok());
            }
        }
    }
}
