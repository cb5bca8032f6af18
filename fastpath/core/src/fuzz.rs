//! What must hold for any bytes whatever, one function a parser of network bytes.
//!
//! `fuzz/` calls these under libFuzzer; `tests/corpus.rs` replays its corpus through them on a
//! stable compiler, and adds mutations. Each panics if a promise is broken.
#![allow(clippy::missing_panics_doc)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

pub use crate::noise::fuzz::{sealed, session};
use crate::noise::{HostKeys, PeerKeys, PrivateKey, PublicKey};
use crate::offload::cut::Cut;
use crate::offload::merge::{Flow, Merged, Segment};
use crate::offload::virtio::{HEADER_LEN, Header};
use crate::peers::{PeerIndex, PeerSpec, Table};
use crate::tunnel::{Content, Framing, Tunnel};
use crate::wire::{control, geneve, icmp, ip};

/// A function that holds any bytes against a promise.
pub type Target = fn(&[u8]);

/// Every target with its name: that of its file in `fuzz/fuzz_targets` and folder in `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 10] = [
    ("geneve", geneve),
    ("ip", ip),
    ("control", control),
    ("inbound", inbound),
    ("outbound", outbound),
    ("cut", cut),
    ("merge", merge),
    ("sealed", sealed),
    ("session", session),
    ("changes", changes),
];

static TUNNEL: LazyLock<Tunnel> = LazyLock::new(|| {
    let peer = PeerSpec {
        id: "b".into(),
        name: "two".into(),
        prefixes: vec!["10.77.0.2/32".into(), "fd00::2/128".into()],
        endpoints: vec!["192.0.2.2:6081".into()],
        ..PeerSpec::default()
    };
    let table = Table::new(42, 1420, None, &[peer]).expect("the table is valid");
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
        let len = control::into_reply(&mut reply);
        assert_eq!(
            control::Echo::new_checked(&reply[..len]),
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
        Content::Reply(range) => assert!(range.start == 0 && range.end <= bytes.len()),
        Content::Answer(_) => assert_eq!(datagram, bytes),
        Content::Nothing => panic!("a plain datagram holds something"),
    }
}

/// A packet that is sent goes to whose destination address it has, and fits the path.
pub fn outbound(bytes: &[u8]) {
    let Ok(whole) = Cut::new(bytes, Header::default()) else { return };
    if let Ok(outbound) = TUNNEL.outbound(bytes) {
        let packet = ip::Packet::new_checked(bytes).expect("only whole packets are sent");
        assert_eq!(TUNNEL.table.owner_of(packet.destination()), Some(outbound.peer()));
        let path = TUNNEL.path(outbound.peer());
        match TUNNEL.fit(whole, outbound.peer(), path) {
            Ok(cut) => assert!(cut.len(0) <= path.most.into()),
            Err(_) => assert!(icmp::too_big(bytes, path.most).is_none_or(|it| it.len() <= 1280)),
        }
    }
}

/// A virtio header and a packet: its segments are whole packets between the same addresses, and none
/// is larger than the first.
pub fn cut(bytes: &[u8]) {
    let Some((header, packet)) = bytes.split_first_chunk::<HEADER_LEN>() else { return };
    let Ok(cut) = Header::parse(header).and_then(|header| Cut::new(packet, header)) else { return };
    check_segments(&cut, packet);
    if let Some(smaller) = cut.shrink(576) {
        assert!(smaller.len(0) <= 576);
        check_segments(&smaller, packet);
    }
}

fn check_segments(cut: &Cut, packet: &[u8]) {
    let whole = ip::Packet::new_checked(packet).expect("only whole packets are cut");
    let mut buffer = vec![0; cut.len(0)];
    for at in 0..cut.count() {
        let segment = &mut buffer[..cut.len(at)];
        cut.write(at, segment);
        if cut.count() > 1 {
            let segment = ip::Packet::new_checked(segment).expect("segments are whole packets");
            assert_eq!(segment.source(), whole.source());
            assert_eq!(segment.total_len(), cut.len(at));
        }
    }
}

/// Two packets, the first as long as the first two bytes say: merged, they can be cut again into what
/// they were, but for what a segment cannot tell.
pub fn merge(bytes: &[u8]) {
    let Some((len, packets)) = bytes.split_first_chunk::<2>() else { return };
    let (first, second) = packets.split_at(packets.len().min(u16::from_be_bytes(*len).into()));
    let whole = |bytes: &[u8]| ip::Packet::new_checked(bytes).is_ok_and(|it| it.total_len() == bytes.len());
    if !whole(first) || !whole(second) || Flow::of(first) != Flow::of(second) {
        return;
    }
    let (Some(head), Some(tail)) = (Segment::parse(first), Segment::parse(second)) else { return };
    let mut merged = Merged::new(head);
    if merged.take(first, second, &tail) {
        let mut packet = [first, &second[tail.payload()..]].concat();
        let header = merged.finish(&mut packet);
        let cut = Cut::new(&packet, header).expect("what is merged can be cut");
        let mut again = vec![0; cut.len(1)];
        cut.write(1, &mut again);
        assert_eq!(again[tail.payload()..], second[tail.payload()..]);
        assert!(Segment::parse(&again).is_some(), "its checksums are right");
    }
}

static HOST: LazyLock<HostKeys> = LazyLock::new(|| PrivateKey::from([1; 32]).into());
static OWN: LazyLock<PublicKey> = LazyLock::new(|| HOST.own.public());

/// A table that changes, four bytes at a time, is at every step what it would be if it were made anew, and what
/// one refuses so does the other. The first byte says whether the network is sealed.
pub fn changes(bytes: &[u8]) {
    let Some((sealed, steps)) = bytes.split_first() else { return };
    let host = (sealed & 1 != 0).then(|| HOST.clone());
    let mut wanted: BTreeMap<String, PeerSpec> = BTreeMap::new();
    let Ok(mut table) = Table::new(42, 1420, host.clone(), &[]) else { return };
    // Several steps make a change, up to one whose first byte is even.
    for change in steps.as_chunks::<4>().0.chunk_by(|step, _| step[0] & 1 != 0) {
        let mut next = wanted.clone();
        let (mut specs, mut removed) = (BTreeMap::new(), vec![]);
        for [_, id, what, where_] in change {
            let id = format!("p{}", id % 8);
            if what % 4 == 0 {
                specs.remove(&id);
                next.remove(&id);
                removed.extend(wanted.contains_key(&id).then(|| id.clone()));
            } else {
                let spec = spec(&id, *what, *where_, host.is_some());
                specs.insert(id.clone(), spec.clone());
                next.insert(id, spec);
            }
        }
        removed.sort();
        removed.dedup();
        let specs: Vec<_> = specs.into_values().collect();
        let whole: Vec<_> = next.values().cloned().collect();
        let anew = Table::new(42, 1420, host.clone(), &whole);
        match table.changed(42, 1420, host.clone(), &specs, &removed) {
            Ok(changed) => {
                check_alike(&changed, &anew.expect("what can become of a table can be made"));
                (table, wanted) = (changed, next);
            }
            Err(_) => assert!(anew.is_err()),
        }
    }
}

/// A peer of which little is its own, so that peers get into each other's way.
fn spec(id: &str, what: u8, place: u8, sealed: bool) -> PeerSpec {
    let own = place % 8;
    let prefix = match what >> 6 {
        0 | 1 => format!("10.77.0.{own}/32"),
        2 => format!("10.77.0.{}/31", own & 6),
        _ => "0.0.0.0/0".into(),
    };
    let key = |number: u8| match number % 16 {
        0 => *OWN,
        number => [number; 32].into(),
    };
    PeerSpec {
        id: id.into(),
        name: format!("{}", what % 3),
        prefixes: if what & 4 == 0 { vec![prefix] } else { vec![prefix, format!("fd00::{own}/128")] },
        endpoints: vec![format!("192.0.2.{}:6081", place >> 5), format!("192.0.2.{}:7000", place >> 6)],
        keys: (sealed || place == 255).then(|| PeerKeys {
            previous: (what & 8 != 0).then(|| key(place >> 4)),
            ..PeerKeys::new(key(place))
        }),
        lanes: u32::from(what >> 4 & 3),
        stock: what & 2 != 0,
    }
}

fn check_alike(one: &Table, other: &Table) {
    let id = |table: &Table, at: PeerIndex| table.peer(at).id.clone();
    assert_eq!(one.digest(), other.digest());
    assert_eq!(one.peers().len(), other.peers().len());
    for (at, peer) in other.entries() {
        let there = one.index_of(&peer.id).expect("the same ids");
        assert_eq!((one.peer(there), id(other, at)), (&**peer, peer.id.clone()));
    }
    for last in 0..9 {
        let inner = [IpAddr::from([10, 77, 0, last]), format!("fd00::{last}").parse().expect("an address")];
        for address in inner {
            let owner = |table: &Table| table.owner_of(address).map(|at| id(table, at));
            assert_eq!(owner(one), owner(other));
        }
        let underlay = IpAddr::from([192, 0, 2, last]);
        let there = |table: &Table| {
            table.at_underlay(underlay).iter().map(|at| id(table, *at)).collect::<BTreeSet<_>>()
        };
        assert_eq!(there(one), there(other));
        assert_eq!(one.at_underlay(underlay).len(), other.at_underlay(underlay).len());
    }
}
