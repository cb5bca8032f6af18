//! Peers: who is in the network, which inner addresses are theirs, where they are reached.
//!
//! [`PeerSpec`] is a peer as it is asked for, [`Peer`] one that was checked; [`Table`] has them all.

mod digest;
mod table;
#[cfg(test)]
pub(crate) mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use thiserror::Error;

use crate::noise::PeerKeys;
use crate::wire::geneve;
pub use table::Table;

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
    pub id: Arc<str>,
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
            id: spec.id.as_str().into(),
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

    /// Its keys and endpoint as a lane of this host uses them; `None` in a plain network. A peer that has no such
    /// lane is not spoken to from here.
    #[must_use]
    pub fn keys_facing(&self, lane: usize) -> Option<(PeerKeys, Option<SocketAddr>)> {
        let mut keys = self.keys.clone()?;
        keys.keepalive = keys.keepalive.filter(|_| lane < self.lanes);
        Some((keys, self.endpoint(lane)))
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
    #[error("peer {0} is to go and is not there. apply the whole table")]
    NotThere(String),
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
