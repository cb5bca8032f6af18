//! Both directions of a packet.
//!
//! ```text
//! plain   outbound  inner packet ─ ip ─ whose is the destination? ─ where is that peer? ─ Geneve header
//!         inbound   datagram ─ who is at this underlay address? ─ Geneve ─ is the inner source theirs?
//! sealed  outbound  inner packet ─ ip ─ whose is the destination? ─ that peer's session ─ seal
//!         inbound   datagram ─ whose session? ─ open ─ IP, or Geneve with an echo ─ is the source theirs?
//! ```
//!
//! Each ends in a verdict for the caller to carry out, or in a named drop that is counted here.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::counters::{Counters, Load, PeerCounters};
use crate::drops::{DropReason, Dropped};
use crate::noise::{Now, Peers, Received, Sealer, message_len};
use crate::offload::cut::Cut;
use crate::peers::{PeerIndex, Table};
use crate::pmtu::Known;
use crate::wire::{control, geneve, ip, wireguard};

/// The tunnel of one lane: a table and the lane's counters for it.
#[derive(Debug)]
pub struct Tunnel {
    /// Who is where.
    pub table: Arc<Table>,
    /// Which lane of this host it is.
    pub lane: usize,
    /// What this lane has carried.
    pub counters: Counters,
}

/// How packets to one peer become datagrams. A packet may be cut: each segment is framed by itself.
pub trait Framing {
    /// Who it is for.
    fn peer(&self) -> PeerIndex;
    /// Where that peer is.
    fn endpoint(&self) -> SocketAddr;
    /// Bytes that [`Self::frame`] needs before a packet.
    fn room_before(&self) -> usize;
    /// Bytes of the datagram for a packet of so many.
    fn datagram_len(&self, packet_len: usize) -> usize;
    /// Makes a datagram, in place, of a packet with room around it.
    fn frame(&mut self, datagram: &mut [u8], packet_len: usize);
}

/// To a peer in a plain network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plain {
    peer: PeerIndex,
    endpoint: SocketAddr,
    header: [u8; geneve::HEADER_LEN],
}

impl Framing for Plain {
    fn peer(&self) -> PeerIndex {
        self.peer
    }

    fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    fn room_before(&self) -> usize {
        geneve::HEADER_LEN
    }

    fn datagram_len(&self, packet_len: usize) -> usize {
        geneve::HEADER_LEN + packet_len
    }

    fn frame(&mut self, datagram: &mut [u8], _: usize) {
        datagram[..geneve::HEADER_LEN].copy_from_slice(&self.header);
    }
}

/// To a peer with whom there is a session.
#[derive(Debug)]
pub struct Sealed<'a> {
    peer: PeerIndex,
    mtu: usize,
    sealer: Sealer<'a>,
}

impl Framing for Sealed<'_> {
    fn peer(&self) -> PeerIndex {
        self.peer
    }

    fn endpoint(&self) -> SocketAddr {
        self.sealer.endpoint
    }

    fn room_before(&self) -> usize {
        wireguard::HEADER_LEN
    }

    fn datagram_len(&self, packet_len: usize) -> usize {
        message_len(packet_len, self.mtu)
    }

    fn frame(&mut self, datagram: &mut [u8], packet_len: usize) {
        datagram[wireguard::HEADER_LEN + packet_len..].fill(0);
        self.sealer.seal(datagram);
    }
}

/// A datagram that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// Who sent it; `None` for an echo from an underlay address that several peers share.
    pub peer: Option<PeerIndex>,
    /// Whether this is the first accepted datagram of that peer.
    pub first: bool,
    /// What to do with it.
    pub content: Content,
}

/// What an accepted datagram holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The inner packet at this range of the datagram: for the host.
    Packet(Range<usize>),
    /// An echo request that was turned into its reply in place: send back what is at this range.
    Reply(Range<usize>),
    /// The answer to the echo with this token.
    Answer(u64),
    /// Nothing for the host: a handshake goes on, or a session is kept alive.
    Nothing,
}

impl Tunnel {
    /// A tunnel for `table` that goes on with the counters of the tunnel it replaces.
    #[must_use]
    pub fn new(table: Arc<Table>, previous: Option<&Self>) -> Self {
        let counters = Counters::new(&table, previous.map(Self::accounts), None);
        Self::with_counters(table, 0, counters)
    }

    /// The tunnel of another lane for the same table; this one is the first lane's.
    #[must_use]
    pub fn beside(&self, lane: usize, previous: Option<&Self>) -> Self {
        let table = self.table.clone();
        let counters = Counters::new(&table, previous.map(Self::accounts), Some(&self.counters));
        Self::with_counters(table, lane, counters)
    }

    fn with_counters(table: Arc<Table>, lane: usize, counters: Counters) -> Self {
        for (index, peer) in table.entries() {
            counters.peer(index).path.assume(peer.stock.then(|| table.mtu()));
        }
        Self { table, lane, counters }
    }

    fn accounts(&self) -> (&Table, &Counters) {
        (&self.table, &self.counters)
    }

    /// Which lane of this host carries packets to a peer: this one, if the peer has one of its number.
    #[must_use]
    pub fn carrier(&self, peer: PeerIndex) -> usize {
        // Every peer has lane 0, which need not look.
        if self.lane == 0 { 0 } else { self.table.peer(peer).lane_facing(self.lane) }
    }

    /// Judges a packet that the host wants to send in a plain network.
    pub fn outbound(&self, packet: &[u8]) -> Result<Plain, Dropped> {
        self.counted(self.judge_outbound(packet))
    }

    /// The same in a sealed one: whom the packet is for.
    pub fn outbound_sealed(&self, packet: &[u8]) -> Result<PeerIndex, Dropped> {
        self.counted(self.judge_route(packet)).map(|(peer, _)| peer)
    }

    /// How large a packet to a peer may be.
    #[must_use]
    pub fn path(&self, peer: PeerIndex) -> Known {
        self.counters.peer(peer).path.known(self.table.mtu())
    }

    /// Cuts a packet to what the path to its peer takes. What cannot be cut is refused, once it is known
    /// that it would not arrive: `too_big`.
    pub fn fit<'a>(&self, cut: Cut<'a>, peer: PeerIndex, path: Known) -> Result<Cut<'a>, Dropped> {
        if cut.len(0) <= usize::from(path.sure) {
            return Ok(cut);
        }
        if let Some(smaller) = cut.shrink(path.sure.into()) {
            return Ok(smaller);
        }
        if cut.len(0) <= usize::from(path.most) {
            return Ok(cut);
        }
        let dropped = DropReason::TooBig.by(peer);
        self.counters.dropped_many(dropped, cut.count() as u64);
        Err(dropped)
    }

    /// Frames what goes to a peer with a session. Padding does not go beyond `mtu`.
    #[must_use]
    pub fn seal<'a>(&self, peer: PeerIndex, mtu: u16, sealer: Sealer<'a>) -> Sealed<'a> {
        Sealed { peer, mtu: mtu.into(), sealer }
    }

    /// Judges a datagram that came from `underlay` at `now`, a clock of the caller's choice.
    pub fn inbound(&self, datagram: &mut [u8], underlay: IpAddr, now: Duration) -> Result<Inbound, Dropped> {
        let (peer, content) = self.counted(self.judge_inbound(datagram, underlay))?;
        let first = peer.is_some_and(|peer| self.counters.peer(peer).heard(now));
        Ok(Inbound { peer, first, content })
    }

    /// Judges a datagram in a sealed network.
    pub fn inbound_sealed(
        &self,
        datagram: &mut [u8],
        source: SocketAddr,
        peers: &mut Peers,
        now: Now,
    ) -> Result<Inbound, Dropped> {
        let received = self.counted(peers.handle_datagram(datagram, source, now))?;
        let Received { peer, live, packet } = received;
        let content = self.judge_opened(datagram, packet, peer).map_err(|reason| reason.by(peer));
        let content = self.counted(content)?;
        let first = live && self.counters.peer(peer).heard(now.time);
        Ok(Inbound { peer: Some(peer), first, content })
    }

    /// Where packets to a peer go now; `None`: nowhere yet.
    #[must_use]
    pub fn endpoint(&self, peer: PeerIndex) -> Option<SocketAddr> {
        let mapped = self.table.peer(peer).endpoint(self.lane);
        match self.table.host_keys() {
            // The lane says so a moment after it has taken the table over.
            Some(_) => self.counters.peer(peer).endpoint().or(mapped),
            None => mapped,
        }
    }

    /// Counts what became of packets to `peer`: sent, or refused by the outer port.
    pub fn sent(&self, peer: Option<PeerIndex>, load: Load, refused: Option<DropReason>) {
        if let (Some(DropReason::TooBig), Some(peer)) = (refused, peer) {
            self.counters.peer(peer).path.doubt();
        }
        self.account(peer, load, refused, |counters| counters.sent(load));
    }

    /// Counts what became of packets from `peer`: delivered, or refused by the inner device.
    pub fn delivered(&self, peer: Option<PeerIndex>, load: Load, refused: Option<DropReason>) {
        self.account(peer, load, refused, |counters| counters.delivered(load));
    }

    fn judge_outbound(&self, packet: &[u8]) -> Result<Plain, Dropped> {
        let (peer, protocol) = self.judge_route(packet)?;
        let endpoint = self.table.peer(peer).endpoint(self.carrier(peer));
        let endpoint = endpoint.ok_or(DropReason::NoEndpoint.by(peer))?;
        Ok(Plain { peer, endpoint, header: geneve::emit(self.table.network_number(), protocol) })
    }

    /// Whom a packet is for, and its `EtherType`.
    fn judge_route(&self, packet: &[u8]) -> Result<(PeerIndex, u16), Dropped> {
        let packet = ip::Packet::new_checked(packet).map_err(|reason| reason.by(None))?;
        let destination = packet.destination();
        let peer = self.table.owner_of(destination).ok_or_else(|| nobody(destination).by(None))?;
        Ok((peer, packet.protocol()))
    }

    fn judge_inbound(
        &self,
        datagram: &mut [u8],
        underlay: IpAddr,
    ) -> Result<(Option<PeerIndex>, Content), Dropped> {
        let sender = match self.table.at_underlay(underlay) {
            [] => return Err(DropReason::SourceUnknown.by(None)),
            [only] => Some(*only),
            _ => None,
        };
        self.judge_datagram(datagram, underlay, sender).map_err(|reason| reason.by(sender))
    }

    fn judge_datagram(
        &self,
        datagram: &mut [u8],
        underlay: IpAddr,
        sender: Option<PeerIndex>,
    ) -> Result<(Option<PeerIndex>, Content), DropReason> {
        let outer = geneve::Datagram::new_checked(datagram)?;
        if outer.vni() != self.table.network_number() {
            return Err(DropReason::NetworkUnknown);
        }
        let start = outer.header_len();
        match (outer.is_control(), outer.protocol()) {
            (false, geneve::IPV4 | geneve::IPV6) => {
                let (owner, len) = self.judge_inner(&outer, underlay)?;
                Ok((Some(owner), Content::Packet(start..start + len)))
            }
            (true, control::PROTOCOL) => Ok((sender, judge_echo(datagram, 0..datagram.len(), start)?)),
            _ => Err(DropReason::ProtocolUnknown),
        }
    }

    fn judge_opened(
        &self,
        datagram: &mut [u8],
        at: Range<usize>,
        peer: PeerIndex,
    ) -> Result<Content, DropReason> {
        let packet = &mut datagram[at.clone()];
        match packet.first().map(|byte| byte >> 4) {
            None => return Ok(Content::Nothing),
            Some(0) => return self.judge_control(datagram, at),
            Some(_) => {}
        }
        let inner = ip::Packet::new_checked(packet)?;
        if self.table.owner_of(inner.source()) != Some(peer) {
            return Err(DropReason::SourceMismatch);
        }
        Ok(Content::Packet(at.start..at.start + inner.total_len()))
    }

    /// The sealed echo at this range.
    fn judge_control(&self, datagram: &mut [u8], at: Range<usize>) -> Result<Content, DropReason> {
        let geneve = geneve::Datagram::new_checked(&datagram[at.clone()])?;
        if geneve.vni() != self.table.network_number() {
            return Err(DropReason::NetworkUnknown);
        }
        if !geneve.is_control() || geneve.protocol() != control::PROTOCOL {
            return Err(DropReason::ProtocolUnknown);
        }
        let start = geneve.header_len();
        judge_echo(datagram, at, start)
    }

    /// Who sent the inner packet and how long it is. A peer may only send from inner addresses that
    /// are its own.
    fn judge_inner(
        &self,
        outer: &geneve::Datagram,
        underlay: IpAddr,
    ) -> Result<(PeerIndex, usize), DropReason> {
        let inner = ip::Packet::new_checked(outer.payload())?;
        if inner.protocol() != outer.protocol() {
            return Err(DropReason::InnerMalformed);
        }
        let owner = self.table.owner_of(inner.source()).ok_or(DropReason::SourceMismatch)?;
        if !self.table.peer(owner).is_at(underlay) {
            return Err(DropReason::SourceMismatch);
        }
        Ok((owner, inner.total_len()))
    }

    fn account(
        &self,
        peer: Option<PeerIndex>,
        load: Load,
        refused: Option<DropReason>,
        carried: impl FnOnce(&PeerCounters),
    ) {
        match (refused, peer) {
            (Some(reason), _) => self.counters.dropped_many(reason.by(peer), load.packets),
            (None, Some(peer)) => carried(self.counters.peer(peer)),
            (None, None) => {}
        }
    }

    fn counted<T>(&self, verdict: Result<T, Dropped>) -> Result<T, Dropped> {
        verdict.inspect_err(|dropped| self.counters.dropped(*dropped))
    }
}

/// The echo behind a Geneve header of `header_len` bytes, both at this range: an answer, or what is to be
/// answered and is its answer now.
fn judge_echo(datagram: &mut [u8], at: Range<usize>, header_len: usize) -> Result<Content, DropReason> {
    let payload = &mut datagram[at.start + header_len..at.end];
    let echo = control::Echo::new_checked(payload)?;
    Ok(match echo.kind {
        control::Kind::Reply => Content::Answer(echo.token),
        control::Kind::Request | control::Kind::Probe => {
            let len = header_len + control::into_reply(payload);
            Content::Reply(at.start..at.start + len)
        }
    })
}

/// Every host sends some multicast (router solicitations); told apart, it hides no missing route.
fn nobody(destination: IpAddr) -> DropReason {
    if destination.is_multicast() { DropReason::Multicast } else { DropReason::NoRoute }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{Output, PeerKeys, PrivateKey};
    use crate::offload::virtio::Header;
    use crate::peers::PeerSpec;
    use proptest::prelude::*;

    const NOW: Duration = Duration::from_secs(1);

    fn spec(id: &str, prefixes: &[&str], endpoints: &[&str]) -> PeerSpec {
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        PeerSpec {
            id: id.into(),
            name: id.into(),
            prefixes: owned(prefixes),
            endpoints: owned(endpoints),
            ..PeerSpec::default()
        }
    }

    /// b is at 192.0.2.2; c and d share 192.0.2.3; e has no endpoint.
    fn tunnel() -> Tunnel {
        let specs = [
            spec("b", &["10.77.0.2/32", "fd00::2/128"], &["192.0.2.2:6081", "[2001:db8::2]:6081"]),
            spec("c", &["10.77.0.3/32"], &["192.0.2.3:6081"]),
            spec("d", &["10.77.0.4/32"], &["192.0.2.3:7000"]),
            spec("e", &["10.77.0.5/32"], &[]),
        ];
        Tunnel::new(Arc::new(Table::new(42, 1420, None, &specs).unwrap()), None)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn packet(source: &str, destination: &str) -> Vec<u8> {
        ip::emit(address(source), address(destination), b"hello")
    }

    fn datagram(vni: u32, protocol: u16, inner: &[u8]) -> Vec<u8> {
        [&geneve::emit(vni, protocol), inner].concat()
    }

    /// The name under which a datagram from 192.0.2.2 (peer b) is dropped, checked to be counted.
    fn refused(mut datagram: Vec<u8>) -> DropReason {
        let tunnel = tunnel();
        let dropped = tunnel.inbound(&mut datagram, address("192.0.2.2"), NOW).unwrap_err();
        assert_eq!(dropped.peer, tunnel.table.index_of("b"));
        assert_eq!(tunnel.counters.drops.read(dropped.reason), 1);
        assert_eq!(tunnel.counters.peer(dropped.peer.unwrap()).drops.read(dropped.reason), 1);
        dropped.reason
    }

    #[test]
    fn outbound_goes_to_the_first_endpoint_of_whose_address_it_is() {
        let tunnel = tunnel();
        for (packet, protocol) in
            [(packet("10.77.0.1", "10.77.0.2"), geneve::IPV4), (packet("fd00::1", "fd00::2"), geneve::IPV6)]
        {
            let outbound = tunnel.outbound(&packet).unwrap();
            assert_eq!(Some(outbound.peer), tunnel.table.index_of("b"));
            assert_eq!(outbound.endpoint.to_string(), "192.0.2.2:6081");
            assert_eq!(outbound.header, geneve::emit(42, protocol));
        }
    }

    #[test]
    fn outbound_refusals_have_names() {
        let tunnel = tunnel();
        let refused = |packet: &[u8]| tunnel.outbound(packet).unwrap_err().reason;
        assert_eq!(refused(&packet("10.77.0.1", "10.77.0.9")), DropReason::NoRoute);
        assert_eq!(refused(&packet("fe80::1", "ff02::2")), DropReason::Multicast);
        assert_eq!(refused(&packet("10.77.0.1", "10.77.0.5")), DropReason::NoEndpoint);
        assert_eq!(refused(b"not ip"), DropReason::InnerMalformed);
        assert_eq!(refused(&[]), DropReason::InnerMalformed);
    }

    #[test]
    fn inbound_hands_over_exactly_the_inner_packet() {
        let tunnel = tunnel();
        let inner = packet("10.77.0.2", "10.77.0.1");
        let mut bytes = [datagram(42, geneve::IPV4, &inner), vec![0xff; 3]].concat();
        let inbound = tunnel.inbound(&mut bytes, address("192.0.2.2"), NOW).unwrap();
        assert_eq!(inbound.peer, tunnel.table.index_of("b"));
        assert_eq!(inbound.content, Content::Packet(8..8 + inner.len()));
    }

    #[test]
    fn inbound_takes_any_endpoint_address_of_the_peer() {
        let mut bytes = datagram(42, geneve::IPV6, &packet("fd00::2", "fd00::1"));
        assert!(tunnel().inbound(&mut bytes, address("2001:db8::2"), NOW).is_ok());
    }

    #[test]
    fn peers_behind_one_underlay_address_are_told_apart_by_inner_source() {
        let tunnel = tunnel();
        for (source, id) in [("10.77.0.3", "c"), ("10.77.0.4", "d")] {
            let mut bytes = datagram(42, geneve::IPV4, &packet(source, "10.77.0.1"));
            let inbound = tunnel.inbound(&mut bytes, address("192.0.2.3"), NOW).unwrap();
            assert_eq!(inbound.peer, tunnel.table.index_of(id));
        }
    }

    #[test]
    fn an_unknown_underlay_address_is_refused_before_anything_is_read() {
        let tunnel = tunnel();
        for mut bytes in [datagram(42, geneve::IPV4, &packet("10.77.0.2", "10.77.0.1")), vec![]] {
            let dropped = tunnel.inbound(&mut bytes, address("192.0.2.9"), NOW).unwrap_err();
            assert_eq!(dropped, DropReason::SourceUnknown.by(None));
        }
    }

    #[test]
    fn a_spoofed_inner_source_is_refused() {
        let from = |source: &str| datagram(42, geneve::IPV4, &packet(source, "10.77.0.1"));
        assert_eq!(refused(from("10.77.0.3")), DropReason::SourceMismatch);
        assert_eq!(refused(from("10.77.0.5")), DropReason::SourceMismatch);
        assert_eq!(refused(from("203.0.113.1")), DropReason::SourceMismatch);
    }

    #[test]
    fn inbound_refusals_have_names() {
        let inner = packet("10.77.0.2", "10.77.0.1");
        let with = |at: usize, value: u8| {
            let mut bytes = datagram(42, geneve::IPV4, &inner);
            bytes[at] = value;
            bytes
        };
        assert_eq!(refused(datagram(43, geneve::IPV4, &inner)), DropReason::NetworkUnknown);
        assert_eq!(refused(datagram(42, 0x6558, &inner)), DropReason::ProtocolUnknown);
        assert_eq!(refused(datagram(42, geneve::IPV6, &inner)), DropReason::InnerMalformed);
        assert_eq!(refused(datagram(42, geneve::IPV4, &inner[..19])), DropReason::InnerMalformed);
        assert_eq!(refused(with(0, 0x80)), DropReason::GeneveVersion);
        assert_eq!(refused(with(0, 0x3f)), DropReason::GeneveMalformed);
        assert_eq!(refused(with(1, 0x40)), DropReason::GeneveCriticalOption);
        assert_eq!(refused(with(1, 0x80)), DropReason::ProtocolUnknown);
        assert_eq!(refused(vec![]), DropReason::GeneveMalformed);
    }

    #[test]
    fn an_echo_is_answered_and_its_answer_recognised() {
        let tunnel = tunnel();
        let mut bytes = control::emit(control::Kind::Request, 42, 99, 100);
        let request = tunnel.inbound(&mut bytes, address("192.0.2.2"), NOW).unwrap();
        assert_eq!(request.content, Content::Reply(0..bytes.len()));
        let reply = tunnel.inbound(&mut bytes, address("192.0.2.2"), NOW).unwrap();
        assert_eq!(reply.content, Content::Answer(99));
        assert_eq!((request.first, reply.first), (true, false));
    }

    #[test]
    fn a_probe_is_answered_in_short() {
        let tunnel = tunnel();
        let mut bytes = control::emit(control::Kind::Probe, 42, 99, 1400);
        let probe = tunnel.inbound(&mut bytes, address("192.0.2.2"), NOW).unwrap();
        assert_eq!(probe.content, Content::Reply(0..geneve::HEADER_LEN + control::MIN_SIZE));
        bytes.truncate(geneve::HEADER_LEN + control::MIN_SIZE);
        let reply = tunnel.inbound(&mut bytes, address("192.0.2.2"), NOW).unwrap();
        assert_eq!(reply.content, Content::Answer(99));
    }

    #[test]
    fn an_echo_from_a_shared_address_is_nobodys_word() {
        let mut bytes = control::emit(control::Kind::Request, 42, 99, 0);
        let inbound = tunnel().inbound(&mut bytes, address("192.0.2.3"), NOW).unwrap();
        assert_eq!((inbound.peer, inbound.first), (None, false));
    }

    #[test]
    fn a_control_packet_of_another_kind_is_refused() {
        let mut bytes = control::emit(control::Kind::Request, 42, 99, 0);
        bytes[geneve::HEADER_LEN] ^= 1;
        assert_eq!(refused(bytes), DropReason::ControlMalformed);
    }

    /// Two hosts with a session: a at 10.77.0.1, b at 10.77.0.2.
    fn sealed_pair() -> [(Tunnel, Peers); 2] {
        let keys = [1, 2].map(|seed| PrivateKey::from([seed; 32]));
        let host = |at: usize| {
            let other = 1 - at;
            let prefix = format!("10.77.0.{}/32", other + 1);
            let spec = PeerSpec {
                keys: Some(PeerKeys::new(keys[other].public())),
                ..spec("peer", &[&prefix], &[&format!("192.0.2.{}:51820", other + 1)])
            };
            let table = Table::new(42, 1420, Some(keys[at].clone().into()), &[spec]).unwrap();
            let mut counter = u8::try_from(at).unwrap();
            let random = move |bytes: &mut [u8]| {
                counter = counter.wrapping_add(2);
                bytes.fill(counter);
            };
            let mut peers = Peers::new(keys[at].clone(), Box::new(random));
            peers.install(table.keys(0), 1420, SEALED_NOW);
            (Tunnel::new(Arc::new(table), None), peers)
        };
        let mut hosts = [host(0), host(1)];
        hosts[0].1.wait(PeerIndex(0), &[], SEALED_NOW).unwrap();
        for to in [1, 0, 1] {
            for message in transmits(&mut hosts[1 - to].1) {
                let from = SocketAddr::new([192, 0, 2, if to == 0 { 2 } else { 1 }].into(), 51820);
                let (tunnel, peers) = &mut hosts[to];
                let inbound = tunnel.inbound_sealed(&mut message.clone(), from, peers, SEALED_NOW).unwrap();
                assert_eq!(inbound.content, Content::Nothing);
                assert_eq!(inbound.first, to == 0 || message[0] == 4, "an initiation proves no presence");
            }
        }
        hosts
    }

    const SEALED_NOW: Now = Now { time: NOW, unix: NOW };

    fn transmits(peers: &mut Peers) -> Vec<Vec<u8>> {
        let outputs = std::iter::from_fn(|| peers.poll_output());
        outputs
            .filter_map(|output| match output {
                Output::Transmit { message, .. } => Some(message),
                _ => None,
            })
            .collect()
    }

    /// What b makes of `packet`, sealed by a.
    fn through_a_seal(packet: &[u8]) -> (Result<Inbound, Dropped>, Vec<u8>) {
        let [(here, peers), (there, remote)] = &mut sealed_pair();
        let mut framing = here.seal(PeerIndex(0), 1420, peers.sealer(PeerIndex(0), SEALED_NOW).unwrap());
        let mut bytes = vec![0xaa; framing.datagram_len(packet.len())];
        bytes[framing.room_before()..][..packet.len()].copy_from_slice(packet);
        framing.frame(&mut bytes, packet.len());
        let from = "192.0.2.1:51820".parse().unwrap();
        let inbound = there.inbound_sealed(&mut bytes, from, remote, SEALED_NOW);
        if let Err(dropped) = inbound {
            assert_eq!(there.counters.drops.read(dropped.reason), 1);
        }
        (inbound, bytes)
    }

    #[test]
    fn a_sealed_packet_arrives_without_its_padding() {
        let inner = packet("10.77.0.1", "10.77.0.2");
        let (inbound, bytes) = through_a_seal(&inner);
        let Content::Packet(range) = inbound.unwrap().content else { panic!("no packet") };
        assert_eq!(bytes[range.clone()], inner);
        assert!(bytes[range.end..bytes.len() - wireguard::TAG_LEN].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_sealed_peer_speaks_for_its_own_addresses_only() {
        let refused = |packet: &[u8]| through_a_seal(packet).0.unwrap_err();
        let by_peer = |reason: DropReason| reason.by(PeerIndex(0));
        assert_eq!(refused(&packet("10.77.0.9", "10.77.0.2")), by_peer(DropReason::SourceMismatch));
        assert_eq!(refused(&packet("fd00::1", "fd00::2")), by_peer(DropReason::SourceMismatch));
        assert_eq!(refused(b"not ip at all"), by_peer(DropReason::InnerMalformed));
        assert_eq!(refused(&[0x45; 8]), by_peer(DropReason::InnerMalformed));
    }

    #[test]
    fn an_echo_goes_through_a_seal() {
        let echo = control::emit(control::Kind::Request, 42, 99, 100);
        let (inbound, bytes) = through_a_seal(&echo);
        let Content::Reply(range) = inbound.unwrap().content else { panic!("no reply") };
        let (inbound, _) = through_a_seal(&bytes[range]);
        assert_eq!(inbound.unwrap().content, Content::Answer(99));

        let other_network = control::emit(control::Kind::Request, 43, 99, 100);
        assert_eq!(through_a_seal(&other_network).0.unwrap_err().reason, DropReason::NetworkUnknown);
        let data = datagram(42, geneve::IPV4, &packet("10.77.0.1", "10.77.0.2"));
        assert_eq!(through_a_seal(&data).0.unwrap_err().reason, DropReason::ProtocolUnknown);
    }

    #[test]
    fn a_sealed_packet_is_routed_as_a_plain_one() {
        let [(tunnel, _), _] = sealed_pair();
        let inner = packet("10.77.0.1", "10.77.0.2");
        assert_eq!(tunnel.outbound_sealed(&inner), Ok(PeerIndex(0)));
        let refused = |packet: &[u8]| tunnel.outbound_sealed(packet).unwrap_err().reason;
        assert_eq!(refused(&packet("10.77.0.1", "10.77.0.9")), DropReason::NoRoute);
    }

    #[test]
    fn what_does_not_fit_is_sent_until_it_is_known_not_to_arrive() {
        let tunnel = tunnel();
        let fits = |len: usize, path: Known| {
            let packet = ip::emit(address("10.77.0.1"), address("10.77.0.2"), &vec![0; len - 20]);
            tunnel.fit(Cut::new(&packet, Header::default()).unwrap(), PeerIndex(0), path).is_ok()
        };
        let unknown = tunnel.path(PeerIndex(0));
        assert_eq!(unknown, Known { sure: 1280, most: 1420, probed: false, watched: false });
        assert!(fits(1280, unknown) && fits(1420, unknown) && !fits(1421, unknown));
        let settled = Known { sure: 1350, most: 1350, probed: true, watched: true };
        assert!(fits(1350, settled) && !fits(1351, settled));
        assert_eq!(tunnel.counters.peer(PeerIndex(0)).drops.read(DropReason::TooBig), 2);
    }

    #[test]
    fn a_stock_peer_is_taken_at_the_networks_word() {
        let stock = PeerSpec { stock: true, ..spec("b", &["10.77.0.2/32"], &["192.0.2.2:6081"]) };
        let table =
            |stock: &PeerSpec| Arc::new(Table::new(42, 1420, None, std::slice::from_ref(stock)).unwrap());
        let tunnel = Tunnel::new(table(&stock), None);
        let path = tunnel.path(PeerIndex(0));
        assert_eq!(path, Known { sure: 1420, most: 1420, probed: false, watched: true });
        tunnel.sent(Some(PeerIndex(0)), Load::of_one(1420), Some(DropReason::TooBig));
        assert_eq!(tunnel.path(PeerIndex(0)), path);
        let no_more = Tunnel::new(table(&PeerSpec { stock: false, ..stock }), Some(&tunnel));
        assert!(!no_more.path(PeerIndex(0)).watched);
    }

    proptest! {
        #[test]
        fn what_one_side_sends_the_other_accepts(payload in prop::collection::vec(any::<u8>(), 0..1400)) {
            let here = tunnel();
            let inner = ip::emit(address("10.77.0.1"), address("10.77.0.2"), &payload);
            let mut sent = here.outbound(&inner).unwrap();
            let mut bytes = [vec![0; sent.room_before()], inner.clone()].concat();
            prop_assert_eq!(sent.datagram_len(inner.len()), bytes.len());
            sent.frame(&mut bytes, inner.len());

            let there = spec("a", &["10.77.0.1/32"], &["192.0.2.1:6081"]);
            let there = Tunnel::new(Arc::new(Table::new(42, 1420, None, &[there]).unwrap()), None);
            let received = there.inbound(&mut bytes, address("192.0.2.1"), NOW).unwrap();
            prop_assert_eq!(received.content, Content::Packet(geneve::HEADER_LEN..bytes.len()));
        }
    }
}
