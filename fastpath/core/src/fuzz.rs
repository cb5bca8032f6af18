//! What must hold for any bytes whatever, one function a parser of network bytes.
//!
//! `fuzz/` calls these under libFuzzer; `tests/corpus.rs` replays its corpus through them on a
//! stable compiler, and adds mutations. Each panics if a promise is broken.
#![allow(clippy::missing_panics_doc)]

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::peers::{PeerSpec, Table};
use crate::tunnel::{Content, Tunnel};
use crate::wire::{control, geneve, ip};

/// A function that holds any bytes against a promise.
pub type Target = fn(&[u8]);

/// Every target with its name: that of its file in `fuzz/fuzz_targets` and folder in `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 5] =
    [("geneve", geneve), ("ip", ip), ("control", control), ("inbound", inbound), ("outbound", outbound)];

static TUNNEL: LazyLock<Tunnel> = LazyLock::new(|| {
    let peer = PeerSpec {
        id: "b".into(),
        name: "two".into(),
        prefixes: vec!["10.77.0.2/32".into(), "fd00::2/128".into()],
        endpoints: vec!["192.0.2.2:6081".into()],
    };
    let table = Table::new(42, 1420, &[peer]).expect("the table is valid");
    Tunnel::new(Arc::new(table), None)
});

/// A Geneve header never reaches beyond its datagram.
pub fn geneve(bytes: &[u8]) {
    if let Ok(datagram) = geneve::Datagram::new_checked(bytes) {
        assert_eq!(datagram.header_len() + datagram.payload().len(), bytes.len());
        assert!(datagram.vni() <= geneve::MAX_VNI);
        let _ = (datagram.is_control(), datagram.protocol());
    }
}

/// An IP packet never reaches beyond its buffer, and its addresses are of its own family.
pub fn ip(bytes: &[u8]) {
    if let Ok(packet) = ip::Packet::new_checked(bytes) {
        assert!(packet.total_len() <= bytes.len());
        assert_eq!(packet.source().is_ipv4(), packet.protocol() == geneve::IPV4);
        assert_eq!(packet.source().is_ipv4(), packet.destination().is_ipv4());
    }
}

/// An echo turned into its reply is the reply to it.
pub fn control(bytes: &[u8]) {
    if let Ok(echo) = control::Echo::new_checked(bytes) {
        let mut reply = bytes.to_vec();
        control::into_reply(&mut reply);
        assert_eq!(
            control::Echo::new_checked(&reply),
            Ok(control::Echo { kind: control::Kind::Reply, ..echo })
        );
    }
}

/// A datagram that is accepted holds a packet from an inner address of its sender.
pub fn inbound(bytes: &[u8]) {
    let underlay = IpAddr::from([192, 0, 2, 2]);
    let mut datagram = bytes.to_vec();
    let Ok(inbound) = TUNNEL.inbound(&mut datagram, underlay, Duration::ZERO) else {
        return;
    };
    match inbound.content {
        Content::Packet(range) => {
            let packet =
                ip::Packet::new_checked(&datagram[range]).expect("only whole packets are handed over");
            assert_eq!(TUNNEL.table.owner_of(packet.source()), inbound.peer);
        }
        Content::Reply => assert_eq!(datagram.len(), bytes.len()),
        Content::Answer(_) => assert_eq!(datagram, bytes),
    }
}

/// A packet that is sent goes to whose destination address it has, and fits the MTU.
pub fn outbound(bytes: &[u8]) {
    if let Ok(outbound) = TUNNEL.outbound(bytes) {
        let packet = ip::Packet::new_checked(bytes).expect("only whole packets are sent");
        assert_eq!(TUNNEL.table.owner_of(packet.destination()), Some(outbound.peer));
        assert!(packet.total_len() <= TUNNEL.table.mtu() as usize);
    }
}
