"""What the fastpath's drop reasons mean: the list of fastpath/core/src/drops.rs; a test holds them equal."""

_MEANINGS = {
    "inner_malformed": "the inner packet is not a whole IPv4 or IPv6 packet",
    "no_route": "no peer has the inner destination address",
    "multicast": "the inner destination is a multicast address, which the overlay does not carry",
    "no_endpoint": "the peer has no underlay endpoint yet",
    "too_big": "larger than the network's MTU, or than the underlay takes",
    "send_blocked": "the UDP socket's send buffer is full",
    "send_failed": "the host could not send to the endpoint (no underlay route, firewall)",
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
