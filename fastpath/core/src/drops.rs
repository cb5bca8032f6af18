//! Every reason for which a packet is not carried: one list, used by all crates, by the statistics
//! and by the documentation.

use std::fmt;

use crate::peers::PeerIndex;

macro_rules! drop_reasons {
    ($($variant:ident $name:literal $meaning:literal)*) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum DropReason {
            $(#[doc = $meaning] $variant,)*
        }

        impl DropReason {
            /// All reasons, in the order in which a packet can meet them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name under which it is counted.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// One line on what happened.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),* }
            }
        }
    };
}

drop_reasons! {
    InnerMalformed       "inner_malformed"        "the inner packet is not a whole IPv4 or IPv6 packet"
    NoRoute              "no_route"               "no peer has the inner destination address"
    Multicast            "multicast"              "the inner destination is a multicast address, which the overlay does not carry"
    NoEndpoint           "no_endpoint"            "the peer has no underlay endpoint yet"
    TooBig               "too_big"                "larger than the network's MTU, or than the underlay takes"
    LaneFull             "lane_full"              "the lane that the peer is reached on has more packets from other lanes than it keeps"
    SendBlocked          "send_blocked"           "the UDP socket's send buffer is full"
    SendFailed           "send_failed"            "the host could not send to the endpoint (no underlay route, firewall)"
    HandshakeBacklog     "handshake_backlog"      "more packets wait for a handshake than are kept; the oldest goes"
    HandshakeFailed      "handshake_failed"       "the peer did not answer any handshake for 90 seconds"
    SealedMalformed      "sealed_malformed"       "the datagram is no WireGuard message, or not a whole one"
    Mac1Invalid          "mac1_invalid"           "a handshake message from someone who does not know this host's public key"
    CookieRequired       "cookie_required"        "a handshake message without a cookie while many arrive; a cookie was sent back"
    HandshakeRate        "handshake_rate"         "more handshakes than are served, in all or from one address or peer"
    HandshakeInvalid     "handshake_invalid"      "a handshake message that was changed, or made with another key, preshared key or suite"
    KeyUnknown           "key_unknown"            "a handshake with a public key that no peer has"
    SuiteMismatch        "suite_mismatch"         "a handshake with another suite than the peer is to use"
    HandshakeReplayed    "handshake_replayed"     "a handshake initiation that is not newer than one accepted before, or that was made for another lane"
    CookieInvalid        "cookie_invalid"         "a cookie that the peer did not make for this host's last message"
    IndexUnknown         "index_unknown"          "a message for a session or handshake that does not exist (any more)"
    SessionExpired       "session_expired"        "a packet sealed with keys that are 3 minutes old or used up"
    Replayed             "replayed"               "a packet that was received before, or too long ago to tell"
    Forged               "forged"                 "a sealed packet that was changed on the way"
    SourceUnknown        "source_unknown"         "no peer has the underlay address it came from"
    GeneveMalformed      "geneve_malformed"       "the datagram is shorter than its Geneve header says"
    GeneveVersion        "geneve_version"         "a Geneve version other than 0"
    GeneveCriticalOption "geneve_critical_option" "a Geneve option that must be understood and is not"
    NetworkUnknown       "network_unknown"        "the VNI is not this network's number"
    ProtocolUnknown      "protocol_unknown"       "the Geneve payload is neither IPv4, IPv6 nor an echo"
    ControlMalformed     "control_malformed"      "a control packet that is not an Overmesh echo"
    EchoUnexpected       "echo_unexpected"        "an echo reply that nobody waits for, or from another peer"
    SourceMismatch       "source_mismatch"        "the inner source address is not of the peer it came from"
    DeviceFull           "device_full"            "the TUN device's queue is full"
    DeviceDown           "device_down"            "the TUN interface is not up"
    DeviceFailed         "device_failed"          "the TUN device refused the packet"
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Blames a peer, or nobody.
    #[must_use]
    pub fn by(self, peer: impl Into<Option<PeerIndex>>) -> Dropped {
        Dropped { reason: self, peer: peer.into() }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A dropped packet: why, and which peer it was to or from where that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// Why.
    pub reason: DropReason,
    /// The peer it is counted against; `None` when no single one is to blame.
    pub peer: Option<PeerIndex>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_snake_case_and_explained() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::COUNT);
        for reason in DropReason::ALL {
            assert!(reason.name().chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_')));
            assert!(!reason.meaning().is_empty());
        }
    }

    #[test]
    fn the_readme_lists_every_reason() {
        let readme = include_str!("../../README.md");
        for reason in DropReason::ALL {
            let row = format!("| `{}` | {} |", reason.name(), reason.meaning());
            assert!(readme.contains(&row), "README.md lacks the row\n{row}");
        }
    }
}
