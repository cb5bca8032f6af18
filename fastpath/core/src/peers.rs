//! The peer table: who is in the network, which inner addresses are theirs, where they are reached.
//!
//! A table is built whole from an Apply and never changes; the next Apply replaces it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use foldhash::fast::FixedState;
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::noise::{HostKeys, PeerKeys, PrivateKey, PublicKey, Suite};
use crate::routes::Routes;
use crate::wire::geneve;

/// Smallest MTU: what every IPv4 host must accept (RFC 791 section 3.2).
pub const MIN_MTU: u32 = 576;
/// Largest MTU: what IPv4 and UDP leave beside the Geneve header.
pub const MAX_MTU: u32 = 65_507 - 8;
/// Most lanes of a host, here and to the agents (`overmesh/config.py`). The kernel would give a TUN interface
/// 256 queues; each takes a port, and records say no more than this.
pub const MAX_LANES: u32 = 64;

/// Position of a peer in one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerIndex(pub(crate) usize);

/// A peer as it is asked for, in text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerSpec {
    /// Unique in the table; counters belong to it.
    pub id: String,
    /// For people.
    pub name: String,
    /// Inner addresses that are the peer's, CIDR.
    pub prefixes: Vec<String>,
    /// Underlay `address:port` or `[address]:port`; the first is sent to. None: known, not reachable.
    pub endpoints: Vec<String>,
    /// Its keys, in a sealed network.
    pub keys: Option<PeerKeys>,
    /// How many lanes it has; lane i is i ports above its endpoints. 0: one.
    pub lanes: u32,
    /// No Overmesh: it knows WireGuard or Geneve only, and answers no echoes.
    pub stock: bool,
}

/// A peer as the table holds it, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// See [`PeerSpec::id`].
    pub id: String,
    /// See [`PeerSpec::name`].
    pub name: String,
    /// See [`PeerSpec::prefixes`]; sorted, each once.
    pub prefixes: Vec<IpNet>,
    /// See [`PeerSpec::endpoints`].
    pub endpoints: Vec<SocketAddr>,
    /// See [`PeerSpec::keys`].
    pub keys: Option<PeerKeys>,
    /// See [`PeerSpec::lanes`]; at least one.
    pub lanes: usize,
    /// See [`PeerSpec::stock`].
    pub stock: bool,
}

impl Peer {
    fn parse(spec: &PeerSpec) -> Result<Self, TableError> {
        if spec.id.is_empty() || [&spec.id, &spec.name].iter().any(|text| text.contains(char::is_control)) {
            return Err(TableError::BadName(spec.id.clone()));
        }
        let prefixes = spec.prefixes.iter().map(|text| parse_prefix(&spec.id, text));
        let endpoints = spec.endpoints.iter().map(|text| parse_endpoint(&spec.id, text));
        let mut prefixes: Vec<_> = prefixes.collect::<Result<_, _>>()?;
        prefixes.sort_unstable();
        prefixes.dedup();
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        check_lanes(format!("peer {}", spec.id), spec.lanes, endpoints.iter().map(SocketAddr::port))?;
        Ok(Self {
            id: spec.id.clone(),
            name: spec.name.clone(),
            prefixes,
            endpoints,
            keys: spec.keys.clone(),
            lanes: spec.lanes.max(1) as usize,
            stock: spec.stock,
        })
    }

    /// Where packets to one of its lanes go; `None` while it has no endpoint, or not that lane.
    #[must_use]
    pub fn endpoint(&self, lane: usize) -> Option<SocketAddr> {
        let mut endpoint = self.endpoints.first().copied().filter(|_| lane < self.lanes)?;
        endpoint.set_port(endpoint.port().checked_add(u16::try_from(lane).ok()?)?);
        Some(endpoint)
    }

    /// Which of its lanes a lane of this host talks to: that of the same number, if there is one.
    #[must_use]
    pub fn lane_facing(&self, lane: usize) -> usize {
        if lane < self.lanes { lane } else { lane % self.lanes }
    }

    /// Whether it may send from this underlay address. Ports are not compared: RFC 8926 section 3.3
    /// has senders vary the source port.
    #[must_use]
    pub fn is_at(&self, underlay: IpAddr) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.ip() == underlay)
    }
}

/// Why a table could not be built: cause and fix.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TableError {
    #[error("network number {0} is no VNI. give one from 1 to {max}", max = geneve::MAX_VNI)]
    BadNetworkNumber(u32),
    #[error("mtu {0} is out of range. give one from {MIN_MTU} to {MAX_MTU}")]
    BadMtu(u32),
    #[error(
        "peer id {0:?} is empty, or it or its name has control characters. give every peer a printable id and name"
    )]
    BadName(String),
    #[error("peer {0} is there twice. list every peer id once")]
    DuplicateId(String),
    #[error("peer {peer}: prefix {prefix:?} is not CIDR. write it as 10.77.0.2/32 or fd00::2/128")]
    BadPrefix { peer: String, prefix: String },
    #[error("peer {peer}: prefix {prefix} has bits set beyond its length. write {network}")]
    HostBits { peer: String, prefix: IpNet, network: IpNet },
    #[error(
        "peer {peer}: endpoint {endpoint:?} is not an address and port. write it as 192.0.2.1:6081 or [2001:db8::1]:6081"
    )]
    BadEndpoint { peer: String, endpoint: String },
    #[error("{whose}: {lanes} lanes are too many. give at most {MAX_LANES}")]
    TooManyLanes { whose: String, lanes: u32 },
    #[error(
        "{whose}: {lanes} lanes from port {port} on go beyond port 65535. give a lower port or fewer lanes"
    )]
    LanesBeyondPorts { whose: String, lanes: u32, port: u16 },
    #[error("prefix {prefix} is both peer {first}'s and peer {second}'s. give it to one of them")]
    SharedPrefix { prefix: IpNet, first: String, second: String },
    #[error("peer {0} has no public key, and the network is sealed. give it its public key")]
    NoKey(String),
    #[error(
        "peer {0} has a public key, and the network is plain. give this host a private key, or leave the peer's out"
    )]
    KeyInPlain(String),
    #[error("peers {first} and {second} have the same public key. give each its own")]
    SharedKey { first: String, second: String },
    #[error("peer {0} has this host's own public key. give every host a key of its own")]
    OwnKey(String),
}

fn parse_prefix(peer: &str, text: &str) -> Result<IpNet, TableError> {
    let prefix: IpNet =
        text.parse().map_err(|_| TableError::BadPrefix { peer: peer.into(), prefix: text.into() })?;
    let network = prefix.trunc();
    if prefix != network {
        return Err(TableError::HostBits { peer: peer.into(), prefix, network });
    }
    Ok(network)
}

fn parse_endpoint(peer: &str, text: &str) -> Result<SocketAddr, TableError> {
    let bad = || TableError::BadEndpoint { peer: peer.into(), endpoint: text.into() };
    let mut endpoint: SocketAddr = text.parse().map_err(|_| bad())?;
    if endpoint.port() == 0 || endpoint.ip().is_unspecified() || endpoint.ip().is_multicast() {
        return Err(bad());
    }
    // An IPv4 peer is seen under its IPv4 address, so ::ffff:192.0.2.1 would never match.
    endpoint.set_ip(endpoint.ip().to_canonical());
    Ok(endpoint)
}

/// Checks that a host can have so many lanes (0: one), from each of these ports on.
///
/// # Errors
/// `TooManyLanes`, `LanesBeyondPorts`; `whose` lanes they are goes into the message.
pub fn check_lanes(
    whose: impl Into<String>,
    lanes: u32,
    ports: impl IntoIterator<Item = u16>,
) -> Result<(), TableError> {
    if lanes > MAX_LANES {
        return Err(TableError::TooManyLanes { whose: whose.into(), lanes });
    }
    let beyond = |port: &u16| u32::from(*port) + lanes.saturating_sub(1) > u16::MAX.into();
    match ports.into_iter().find(beyond) {
        Some(port) => Err(TableError::LanesBeyondPorts { whose: whose.into(), lanes, port }),
        None => Ok(()),
    }
}

/// The whole network as one host sees it.
#[derive(Debug)]
pub struct Table {
    network_number: u32,
    mtu: u32,
    host_keys: Option<HostKeys>,
    peers: Vec<Peer>,
    by_id: HashMap<String, PeerIndex, FixedState>,
    by_underlay: HashMap<IpAddr, Vec<PeerIndex>, FixedState>,
    routes: Routes<PeerIndex>,
}

impl Table {
    /// Checks what is asked for and builds the indexes.
    ///
    /// `mtu` is that of the inner network in bytes. With keys of this host the network is sealed.
    pub fn new(
        network_number: u32,
        mtu: u32,
        host_keys: Option<HostKeys>,
        specs: &[PeerSpec],
    ) -> Result<Self, TableError> {
        if network_number == 0 || network_number > geneve::MAX_VNI {
            return Err(TableError::BadNetworkNumber(network_number));
        }
        if !(MIN_MTU..=MAX_MTU).contains(&mtu) {
            return Err(TableError::BadMtu(mtu));
        }
        let peers = specs.iter().map(Peer::parse).collect::<Result<Vec<_>, _>>()?;
        check_keys(host_keys.as_ref(), &peers)?;
        Ok(Self {
            network_number,
            mtu,
            host_keys,
            by_id: index_ids(&peers)?,
            by_underlay: index_underlay(&peers),
            routes: index_prefixes(&peers)?,
            peers,
        })
    }

    /// The network's number, its VNI on the wire.
    #[must_use]
    pub fn network_number(&self) -> u32 {
        self.network_number
    }

    /// MTU of the inner network in bytes.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// This host's keys, in a sealed network.
    #[must_use]
    pub fn host_keys(&self) -> Option<&HostKeys> {
        self.host_keys.as_ref()
    }

    /// Keys and endpoints of all peers as a lane of this host uses them, in the order asked for; none
    /// in a plain network. A peer that has no such lane is not spoken to from here.
    pub fn keys(&self, lane: usize) -> impl Iterator<Item = (PeerKeys, Option<SocketAddr>)> {
        self.peers.iter().filter_map(move |peer| {
            let mut keys = peer.keys.clone()?;
            keys.keepalive = keys.keepalive.filter(|_| lane < peer.lanes);
            Some((keys, peer.endpoint(lane)))
        })
    }

    /// All peers, in the order asked for.
    #[must_use]
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// All peers with their positions.
    pub fn entries(&self) -> impl Iterator<Item = (PeerIndex, &Peer)> {
        self.peers.iter().enumerate().map(|(at, peer)| (PeerIndex(at), peer))
    }

    /// The peer at a position of this table.
    #[must_use]
    pub fn peer(&self, index: PeerIndex) -> &Peer {
        &self.peers[index.0]
    }

    /// The position of the peer with this id.
    #[must_use]
    pub fn index_of(&self, id: &str) -> Option<PeerIndex> {
        self.by_id.get(id).copied()
    }

    /// The peer that has this inner address, by longest prefix.
    #[must_use]
    pub fn owner_of(&self, inner: IpAddr) -> Option<PeerIndex> {
        self.routes.lookup(inner)
    }

    /// The peers that have this underlay address; several may share one.
    #[must_use]
    pub fn at_underlay(&self, underlay: IpAddr) -> &[PeerIndex] {
        self.by_underlay.get(&underlay).map_or(&[], Vec::as_slice)
    }

    /// SHA-256 of the table in canonical form (README.md, "Table digest"): equal if and only if
    /// two tables forward alike, whatever the order of their peers.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.canonical()).into()
    }

    fn canonical(&self) -> String {
        let mut text = format!("overmesh table v1\nnetwork {} mtu {}\n", self.network_number, self.mtu);
        for key in self.host_keys.iter().flat_map(HostKeys::iter) {
            writeln!(text, "key {}", hex(key.public().bytes())).expect("writing to a String cannot fail");
        }
        let mut peers: Vec<_> = self.peers.iter().collect();
        peers.sort_unstable_by_key(|peer| &peer.id);
        for peer in peers {
            write_canonical(&mut text, peer).expect("writing to a String cannot fail");
        }
        text
    }
}

fn write_canonical(text: &mut String, peer: &Peer) -> std::fmt::Result {
    writeln!(text, "peer {}\nname {}", peer.id, peer.name)?;
    match &peer.keys {
        None => writeln!(text, "mode plain")?,
        Some(keys) => write_keys(text, keys)?,
    }
    if peer.stock {
        writeln!(text, "stock")?;
    }
    for prefix in &peer.prefixes {
        writeln!(text, "prefix {prefix}")?;
    }
    for endpoint in &peer.endpoints {
        writeln!(text, "endpoint {endpoint}")?;
    }
    if peer.lanes > 1 {
        writeln!(text, "lanes {}", peer.lanes)?;
    }
    Ok(())
}

fn write_keys(text: &mut String, keys: &PeerKeys) -> std::fmt::Result {
    let suite = match keys.suite {
        Suite::ChaChaPoly => "chacha",
        Suite::AesGcm => "aes",
    };
    let keepalive = keys.keepalive.map_or(0, |keepalive| keepalive.as_secs());
    writeln!(text, "mode sealed\nsuite {suite}\nkeepalive {keepalive}")?;
    writeln!(text, "public_key {}", hex(keys.public_key.bytes()))?;
    if let Some(previous) = &keys.previous {
        writeln!(text, "previous_public_key {}", hex(previous.bytes()))?;
    }
    writeln!(text, "preshared_key {}", hex(&Sha256::digest(keys.preshared_key.bytes())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// All peers have keys, each its own, or none has.
fn check_keys(own: Option<&HostKeys>, peers: &[Peer]) -> Result<(), TableError> {
    let mine: Vec<_> = own.into_iter().flat_map(HostKeys::iter).map(PrivateKey::public).collect();
    let mut owners: HashMap<PublicKey, &Peer, FixedState> = HashMap::default();
    for peer in peers {
        let keys = match (own, &peer.keys) {
            (None, None) => continue,
            (None, Some(_)) => return Err(TableError::KeyInPlain(peer.id.clone())),
            (Some(_), None) => return Err(TableError::NoKey(peer.id.clone())),
            (Some(_), Some(keys)) => keys,
        };
        for name in keys.names() {
            if mine.contains(&name) {
                return Err(TableError::OwnKey(peer.id.clone()));
            }
            if let Some(first) = owners.insert(name, peer) {
                return Err(TableError::SharedKey { first: first.id.clone(), second: peer.id.clone() });
            }
        }
    }
    Ok(())
}

fn index_ids(peers: &[Peer]) -> Result<HashMap<String, PeerIndex, FixedState>, TableError> {
    let mut index = HashMap::default();
    for (at, peer) in peers.iter().enumerate() {
        if index.insert(peer.id.clone(), PeerIndex(at)).is_some() {
            return Err(TableError::DuplicateId(peer.id.clone()));
        }
    }
    Ok(index)
}

fn index_underlay(peers: &[Peer]) -> HashMap<IpAddr, Vec<PeerIndex>, FixedState> {
    let mut index: HashMap<_, Vec<_>, _> = HashMap::default();
    for (at, peer) in peers.iter().enumerate() {
        for endpoint in &peer.endpoints {
            let there = index.entry(endpoint.ip()).or_default();
            if there.last() != Some(&PeerIndex(at)) {
                there.push(PeerIndex(at));
            }
        }
    }
    index
}

fn index_prefixes(peers: &[Peer]) -> Result<Routes<PeerIndex>, TableError> {
    let mut owners: HashMap<IpNet, usize, FixedState> = HashMap::default();
    for (at, peer) in peers.iter().enumerate() {
        for prefix in &peer.prefixes {
            if let Some(first) = owners.insert(*prefix, at) {
                let (first, second) = (peers[first].id.clone(), peer.id.clone());
                return Err(TableError::SharedPrefix { prefix: *prefix, first, second });
            }
        }
    }
    Ok(Routes::new(owners.into_iter().map(|(prefix, at)| (prefix, PeerIndex(at)))))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A peer with nothing but its id.
    pub(crate) fn peer(id: &str) -> PeerSpec {
        PeerSpec { id: id.into(), ..PeerSpec::default() }
    }

    pub(crate) fn table(specs: &[PeerSpec]) -> Table {
        Table::new(42, 1420, None, specs).unwrap()
    }

    fn refused(specs: &[PeerSpec]) -> String {
        Table::new(42, 1420, None, specs).unwrap_err().to_string()
    }

    fn with(id: &str, prefixes: &[&str], endpoints: &[&str]) -> PeerSpec {
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        PeerSpec { prefixes: owned(prefixes), endpoints: owned(endpoints), ..peer(id) }
    }

    #[test]
    fn refusals_name_cause_and_fix() {
        assert_eq!(refused(&[peer("a"), peer("a")]), "peer a is there twice. list every peer id once");
        assert_eq!(
            refused(&[with("a", &["10.0.0.1/24"], &[])]),
            "peer a: prefix 10.0.0.1/24 has bits set beyond its length. write 10.0.0.0/24"
        );
        assert_eq!(
            refused(&[with("a", &["10.0.0.0/8"], &[]), with("b", &["10.0.0.0/8"], &[])]),
            "prefix 10.0.0.0/8 is both peer a's and peer b's. give it to one of them"
        );
        assert!(refused(&[with("a", &["10.0.0.1"], &[])]).contains("is not CIDR"));
        assert!(refused(&[with("a", &[], &["192.0.2.1"])]).contains("is not an address and port"));
        assert!(refused(&[with("a", &[], &["192.0.2.1:0"])]).contains("is not an address and port"));
        assert!(refused(&[peer("")]).contains("is empty"));
        assert!(refused(&[peer("a\nb")]).contains("control characters"));
    }

    #[test]
    fn network_number_and_mtu_are_bounded() {
        let refused = |number, mtu| Table::new(number, mtu, None, &[]).unwrap_err();
        assert_eq!(refused(0, 1420), TableError::BadNetworkNumber(0));
        assert_eq!(refused(1 << 24, 1420), TableError::BadNetworkNumber(1 << 24));
        assert_eq!(refused(1, 575), TableError::BadMtu(575));
        assert_eq!(refused(1, 65_500), TableError::BadMtu(65_500));
    }

    fn sealed(keys: &[Option<u8>]) -> Result<Table, TableError> {
        let ids = ["a", "b", "c"];
        let peer = |(id, key): (&&str, &Option<u8>)| PeerSpec {
            keys: key.map(|key| PeerKeys::new(PrivateKey::from([key; 32]).public())),
            ..peer(id)
        };
        let specs: Vec<_> = ids.iter().zip(keys).map(peer).collect();
        Table::new(42, 1420, Some(host_keys(1)), &specs)
    }

    fn host_keys(own: u8) -> HostKeys {
        PrivateKey::from([own; 32]).into()
    }

    #[test]
    fn in_a_sealed_network_everyone_has_a_key_of_their_own() {
        assert_eq!(sealed(&[Some(2), Some(3)]).unwrap().keys(0).count(), 2);
        assert_eq!(sealed(&[Some(2), None]).unwrap_err(), TableError::NoKey("b".into()));
        assert_eq!(sealed(&[Some(1)]).unwrap_err(), TableError::OwnKey("a".into()));
        let shared = TableError::SharedKey { first: "a".into(), second: "c".into() };
        assert_eq!(sealed(&[Some(2), Some(3), Some(2)]).unwrap_err(), shared);
        let keyed = PeerSpec { keys: Some(PeerKeys::new([2; 32].into())), ..peer("a") };
        assert!(refused(&[keyed]).contains("the network is plain"));
    }

    #[test]
    fn the_digest_tells_keys_apart_and_shows_no_secret() {
        let table = |psk: u8, own: u8| {
            let mut keys = PeerKeys::new([9; 32].into());
            keys.preshared_key = [psk; 32].into();
            let spec = PeerSpec { keys: Some(keys), ..peer("a") };
            Table::new(42, 1420, Some(host_keys(own)), &[spec]).unwrap()
        };
        assert_ne!(table(1, 1).digest(), table(2, 1).digest());
        assert_ne!(table(1, 1).digest(), table(1, 2).digest());
        assert!(!table(0x5a, 1).canonical().contains(&"5a".repeat(32)));
        assert!(
            table(1, 1).canonical().contains("\nmode sealed\nsuite chacha\nkeepalive 0\npublic_key 0909")
        );
    }

    #[test]
    fn a_host_or_peer_that_changes_its_key_has_two() {
        let public = |seed: u8| PrivateKey::from([seed; 32]).public();
        let table = |own: HostKeys, previous: Option<PublicKey>| {
            let spec =
                PeerSpec { keys: Some(PeerKeys { previous, ..PeerKeys::new(public(9)) }), ..peer("a") };
            Table::new(42, 1420, Some(own), &[spec])
        };
        let both = HostKeys { own: [1; 32].into(), other: Some([2; 32].into()) };
        let turned = HostKeys { own: [2; 32].into(), other: Some([1; 32].into()) };
        let digest = |own: &HostKeys, previous| table(own.clone(), previous).unwrap().digest();
        assert_ne!(digest(&both, None), digest(&host_keys(1), None));
        assert_ne!(digest(&both, None), digest(&turned, None));
        assert_ne!(digest(&both, Some(public(8))), digest(&both, None));
        assert_eq!(table(both, Some(public(2))).unwrap_err(), TableError::OwnKey("a".into()));
        let twice = TableError::SharedKey { first: "a".into(), second: "a".into() };
        assert_eq!(table(host_keys(1), Some(public(9))).unwrap_err(), twice);
    }

    #[test]
    fn one_peer_may_nest_in_another() {
        let table = table(&[with("wide", &["10.0.0.0/8"], &[]), with("host", &["10.0.0.1/32"], &[])]);
        let owner = |text: &str| table.owner_of(text.parse().unwrap()).map(|at| table.peer(at).id.as_str());
        assert_eq!(owner("10.0.0.1"), Some("host"));
        assert_eq!(owner("10.0.0.2"), Some("wide"));
        assert_eq!(owner("11.0.0.1"), None);
    }

    #[test]
    fn an_underlay_address_may_be_shared_and_mapped() {
        let table = table(&[
            with("a", &[], &["192.0.2.1:6081", "192.0.2.1:7000"]),
            with("b", &[], &["[::ffff:192.0.2.1]:6081"]),
        ]);
        assert_eq!(table.at_underlay("192.0.2.1".parse().unwrap()), [PeerIndex(0), PeerIndex(1)]);
        assert!(table.at_underlay("192.0.2.2".parse().unwrap()).is_empty());
    }

    #[test]
    fn the_digest_ignores_order_of_peers_but_not_of_endpoints() {
        let a = with("a", &["10.0.0.1/32", "fd00::1/128"], &["192.0.2.1:6081", "192.0.2.2:6081"]);
        let b = peer("b");
        let turned = with("a", &["fd00::1/128", "10.0.0.1/32"], &["192.0.2.2:6081", "192.0.2.1:6081"]);
        let digest = |specs: &[PeerSpec]| table(specs).digest();
        assert_eq!(digest(&[a.clone(), b.clone()]), digest(&[b.clone(), a.clone()]));
        assert_ne!(digest(std::slice::from_ref(&a)), digest(&[turned]));
        assert_ne!(digest(&[a]), digest(&[b]));
    }

    #[test]
    fn a_lane_is_as_many_ports_above_and_meets_the_one_of_its_number() {
        let table = table(&[PeerSpec { lanes: 2, ..with("a", &[], &["192.0.2.1:65534"]) }, peer("b")]);
        let [a, b] = table.peers() else { unreachable!() };
        let port = |lane| a.endpoint(lane).map(|endpoint| endpoint.port());
        assert_eq!([0, 1, 2].map(port), [Some(65534), Some(65535), None]);
        assert_eq!([0, 1, 2, 3].map(|lane| a.lane_facing(lane)), [0, 1, 0, 1]);
        assert_eq!((b.lanes, b.lane_facing(3), b.endpoint(0)), (1, 0, None));
    }

    #[test]
    fn lanes_are_bounded_by_queues_and_ports() {
        let lanes = |lanes| refused(&[PeerSpec { lanes, ..with("a", &[], &["192.0.2.1:65534"]) }]);
        assert_eq!(lanes(65), "peer a: 65 lanes are too many. give at most 64");
        assert_eq!(
            lanes(3),
            "peer a: 3 lanes from port 65534 on go beyond port 65535. give a lower port or fewer lanes"
        );
    }

    #[test]
    fn a_lane_that_the_peer_lacks_does_not_speak_to_it() {
        let mut keys = PeerKeys::new([9; 32].into());
        keys.keepalive = Some(std::time::Duration::from_secs(25));
        let spec = PeerSpec { keys: Some(keys), ..with("a", &[], &["192.0.2.1:51820"]) };
        let table = Table::new(42, 1420, Some(host_keys(1)), &[spec]).unwrap();
        let of = |lane| table.keys(lane).map(|(keys, to)| (keys.keepalive.is_some(), to.is_some())).next();
        assert_eq!([of(0), of(1)], [Some((true, true)), Some((false, false))]);
    }

    #[test]
    fn the_canonical_form_is_as_documented() {
        let peer = PeerSpec { name: "two".into(), ..with("b", &["10.0.0.2/32"], &["192.0.2.2:6081"]) };
        let one_lane = "overmesh table v1\nnetwork 42 mtu 1420\npeer b\nname two\nmode plain\n\
                        prefix 10.0.0.2/32\nendpoint 192.0.2.2:6081\n";
        assert_eq!(table(std::slice::from_ref(&peer)).canonical(), one_lane);
        let two_lanes = table(&[PeerSpec { lanes: 2, ..peer }]).canonical();
        assert_eq!(two_lanes, format!("{one_lane}lanes 2\n"));
    }
}
