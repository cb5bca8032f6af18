"""What the fastpath's drop reasons mean: the list of fastpath/core/src/drops.rs; a test holds them equal."""

_MEANINGS = {
    "inner_malformed": "the inner packet is not a whole IPv4 or IPv6 packet",
    "no_route": "no peer has the inner destination address",
    "multicast": "the inner destination is a multicast address, which the overlay does not carry",
    "no_endpoint": "the peer has no underlay endpoint yet",
    "too_big": "larger than the network's MTU, or than the underlay takes",
    "lane_full": "the lane that the peer is reached on has more packets from other lanes than it keeps",
    "send_blocked": "the UDP socket's send buffer is full",
    "send_failed": "the host could not send to the endpoint (no underlay route, firewall)",
    "handshake_backlog": "more packets wait for a handshake than are kept; the oldest goes",
    "handshake_failed": "the peer did not answer any handshake for 90 seconds",
    "sealed_malformed": "the datagram is no WireGuard message, or not a whole one",
    "mac1_invalid": "a handshake message from someone who does not know this host's public key",
    "cookie_required": "a handshake message without a cookie while many arrive; a cookie was sent back",
    "handshake_rate": "more handshakes than are served, in all or from one address or peer",
    "handshake_invalid": (
        "a handshake message that was changed, or made with another key, preshared key or suite"
    ),
    "key_unknown": "a handshake with a public key that no peer has",
    "suite_mismatch": "a handshake with another suite than the peer is to use",
    "handshake_replayed": (
        "a handshake initiation that is not newer than one accepted before, or that was made for another lane"
    ),
    "cookie_invalid": "a cookie that the peer did not make for this host's last message",
    "index_unknown": "a message for a session or handshake that does not exist (any more)",
    "session_expired": "a packet sealed with keys that are 3 minutes old or used up",
    "replayed": "a packet that was received before, or too long ago to tell",
    "forged": "a sealed packet that was changed on the way",
    "source_unknown": "no peer has the underlay address it came from",
    "geneve_malformed": "the datagram is shorter than its Geneve header says",
    "geneve_version": "a Geneve version other than 0",
    "geneve_critical_option": "a Geneve option that must be understood and is not",
    "network_unknown": "the VNI is not this network's number",
    "protocol_unknown": "the Geneve payload is neither IPv4, IPv6 nor an echo",
    "control_malformed": "a control packet that is not an Overmesh echo",
    "echo_unexpected": "an echo reply that nobody waits for, or from another peer",
    "source_mismatch": "the inner source address is not of the peer it came from",
    "device_full": "the TUN device's queue is full",
    "device_down": "the TUN interface is not up",
    "device_failed": "the TUN device refused the packet",
}


def meaning(reason: str) -> str:
    """Return one line on what happened; empty for a reason that only a newer fastpath counts."""
    return _MEANINGS.get(reason, "")
