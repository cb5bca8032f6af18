//! The peer table: peers by position, and what they are found by.
//!
//! A table in use never changes. What changes about it makes another one, which shares the peers that stay: the
//! same objects, nearly all at the same positions. So whoever goes from one to the next can tell at a glance
//! whom to look at.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::digest::{Sum, digest};
use super::{MAX_MTU, MIN_MTU, Peer, PeerIndex, PeerSpec, TableError};
use crate::noise::{HostKeys, PeerKeys, PrivateKey, PublicKey};
use crate::routes::Routes;
use crate::wire::geneve;

/// The whole network as one host sees it.
#[derive(Debug, Clone, Default)]
pub struct Table {
    network_number: u32,
    mtu: u32,
    host_keys: Option<HostKeys>,
    /// The public halves of these.
    own: Vec<PublicKey>,
    peers: Vec<Arc<Peer>>,
    by_id: HashMap<Arc<str>, PeerIndex, FixedState>,
    /// By either key, where a peer changes its own.
    by_key: HashMap<PublicKey, PeerIndex, FixedState>,
    /// In a plain network: in a sealed one a session tells who it is.
    by_underlay: HashMap<IpAddr, Vec<PeerIndex>, FixedState>,
    routes: Routes<PeerIndex>,
    sum: Sum,
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
        Self::default().changed(network_number, mtu, host_keys, specs, &[])
    }

    /// The table that this one becomes: without the peers whose ids are `removed`, and with those in `specs`,
    /// which are new or take the place of what has their id. It costs a copy of the indexes, and for the rest
    /// as much as what changes.
    pub fn changed(
        &self,
        network_number: u32,
        mtu: u32,
        host_keys: Option<HostKeys>,
        specs: &[PeerSpec],
        removed: &[String],
    ) -> Result<Self, TableError> {
        if network_number == 0 || network_number > geneve::MAX_VNI {
            return Err(TableError::BadNetworkNumber(network_number));
        }
        if !(MIN_MTU..=MAX_MTU).contains(&mtu) {
            return Err(TableError::BadMtu(mtu));
        }
        let mut table = Self { network_number, mtu, ..self.clone() };
        if host_keys != self.host_keys {
            table.own = host_keys.iter().flat_map(HostKeys::iter).map(PrivateKey::public).collect();
            table.host_keys = host_keys;
        }
        for id in removed {
            table.remove(id)?;
        }
        // All that goes, goes before anything comes: a prefix may pass from one peer to another.
        let places = specs.iter().map(|spec| table.place(spec)).collect::<Result<Vec<_>, _>>()?;
        places.iter().try_for_each(|at| table.link(*at))?;
        if table.own == self.own {
            // Who stays was held against them before.
            places.iter().try_for_each(|at| table.check_keys(table.peer(*at)))?;
        } else {
            table.peers.iter().try_for_each(|peer| table.check_keys(peer))?;
        }
        Ok(table)
    }

    /// Takes a peer out; the last one takes its position.
    fn remove(&mut self, id: &str) -> Result<(), TableError> {
        let at = self.index_of(id).ok_or_else(|| TableError::NotThere(id.into()))?;
        let last = PeerIndex(self.peers.len() - 1);
        self.unlink(at);
        if at == last {
            self.peers.pop();
            return Ok(());
        }
        self.unlink(last);
        self.peers.swap_remove(at.0);
        self.link(at)
    }

    /// Puts a peer where that with its id is, or at the end; it is not found by anything yet.
    fn place(&mut self, spec: &PeerSpec) -> Result<PeerIndex, TableError> {
        let peer = Arc::new(Peer::parse(spec)?);
        if let Some(at) = self.index_of(&spec.id) {
            self.unlink(at);
            self.peers[at.0] = peer;
            return Ok(at);
        }
        self.peers.push(peer);
        Ok(PeerIndex(self.peers.len() - 1))
    }

    /// Has the peer at a position be found.
    fn link(&mut self, at: PeerIndex) -> Result<(), TableError> {
        let peer = self.peers[at.0].clone();
        if self.by_id.insert(peer.id.clone(), at).is_some() {
            return Err(TableError::DuplicateId(peer.id.to_string()));
        }
        for name in peer.keys.iter().flat_map(PeerKeys::names) {
            if let Some(first) = self.by_key.insert(name, at) {
                let [first, second] = [first, at].map(|at| self.peer(at).id.to_string());
                return Err(TableError::SharedKey { first, second });
            }
        }
        for prefix in &peer.prefixes {
            if let Some(first) = self.routes.insert(*prefix, at) {
                let [first, second] = [first, at].map(|at| self.peer(at).id.to_string());
                return Err(TableError::SharedPrefix { prefix: *prefix, first, second });
            }
        }
        if self.host_keys.is_none() {
            self.link_underlay(at, &peer.endpoints);
        }
        self.sum.turn(&peer);
        Ok(())
    }

    fn link_underlay(&mut self, at: PeerIndex, endpoints: &[SocketAddr]) {
        for endpoint in endpoints {
            let there = self.by_underlay.entry(endpoint.ip()).or_default();
            if !there.contains(&at) {
                there.push(at);
            }
        }
    }

    /// Undoes what [`Self::link`] did.
    fn unlink(&mut self, at: PeerIndex) {
        let peer = self.peers[at.0].clone();
        self.by_id.remove(&peer.id);
        for name in peer.keys.iter().flat_map(PeerKeys::names) {
            self.by_key.remove(&name);
        }
        for prefix in &peer.prefixes {
            self.routes.remove(*prefix);
        }
        for endpoint in &peer.endpoints {
            if let Some(there) = self.by_underlay.get_mut(&endpoint.ip()) {
                there.retain(|other| *other != at);
                if there.is_empty() {
                    self.by_underlay.remove(&endpoint.ip());
                }
            }
        }
        self.sum.turn(&peer);
    }

    /// All peers have keys that are not this host's, or none has any.
    fn check_keys(&self, peer: &Peer) -> Result<(), TableError> {
        let (sealed, id) = (self.host_keys.is_some(), || peer.id.to_string());
        match &peer.keys {
            None if sealed => Err(TableError::NoKey(id())),
            Some(_) if !sealed => Err(TableError::KeyInPlain(id())),
            Some(keys) if keys.names().any(|name| self.own.contains(&name)) => Err(TableError::OwnKey(id())),
            _ => Ok(()),
        }
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

    /// Keys and endpoints of all peers as a lane of this host uses them, by position; none in a plain network.
    pub fn keys(&self, lane: usize) -> impl Iterator<Item = (PeerKeys, Option<SocketAddr>)> {
        self.peers.iter().filter_map(move |peer| peer.keys_facing(lane))
    }

    /// The same of those that are not what `before` has at their position, with that.
    pub fn keys_since(
        &self,
        before: &Self,
        lane: usize,
    ) -> impl Iterator<Item = (PeerIndex, (PeerKeys, Option<SocketAddr>))> {
        let changed = self.entries().filter(|(at, peer)| !before.has(*at, peer));
        changed.filter_map(move |(at, peer)| Some((at, peer.keys_facing(lane)?)))
    }

    /// All peers, by position: in the order asked for, as long as none was removed.
    #[must_use]
    pub fn peers(&self) -> &[Arc<Peer>] {
        &self.peers
    }

    /// All peers with their positions.
    pub fn entries(&self) -> impl Iterator<Item = (PeerIndex, &Arc<Peer>)> {
        self.peers.iter().enumerate().map(|(at, peer)| (PeerIndex(at), peer))
    }

    /// Whether this very peer is at a position.
    #[must_use]
    pub fn has(&self, at: PeerIndex, peer: &Arc<Peer>) -> bool {
        self.peers.get(at.0).is_some_and(|there| Arc::ptr_eq(there, peer))
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

    /// The peers that have this underlay address in a plain network; several may share one.
    #[must_use]
    pub fn at_underlay(&self, underlay: IpAddr) -> &[PeerIndex] {
        self.by_underlay.get(&underlay).map_or(&[], Vec::as_slice)
    }

    /// Equal if and only if two tables forward alike, whatever the order of their peers.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        digest(self.network_number, self.mtu, &self.own, &self.sum)
    }
}
