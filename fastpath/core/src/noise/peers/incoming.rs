//! What comes in: whom a message is for, whether it is worth its cost, what it does.

use std::net::SocketAddr;

use super::{Now, Output, Peers, Received};
use crate::drops::{DropReason, Dropped};
use crate::noise::aead::Suite;
use crate::noise::cookie::Checker;
use crate::noise::handshake::Responder;
use crate::noise::keys::{HostKeys, PrivateKey};
use crate::peers::PeerIndex;
use crate::wire::wireguard::{CookieReply, Data, Initiation, Message, Response};

/// A key of this host's that a handshake message may be for.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) private_key: PrivateKey,
    checker: Checker,
}

impl Local {
    pub(super) fn all(keys: &HostKeys) -> Vec<Self> {
        let local =
            |key: &PrivateKey| Self { private_key: key.clone(), checker: Checker::new(&key.public()) };
        keys.iter().map(local).collect()
    }
}

impl Peers {
    /// Takes a datagram; a packet in it is opened in place.
    ///
    /// # Errors
    /// A named drop, blamed on a peer only where the peer is proved to have sent it or to be meant
    /// by its index.
    pub fn handle_datagram(
        &mut self,
        datagram: &mut [u8],
        source: SocketAddr,
        now: Now,
    ) -> Result<Received, Dropped> {
        let message = Message::new_checked(datagram).map_err(|reason| reason.by(None))?;
        let (peer, live) = match message {
            Message::Data(data) => return self.open(data, datagram, source, now),
            Message::Initiation(initiation) => (self.respond(initiation, source, now)?, false),
            Message::Response(response) => (self.finish(response, source, now)?, true),
            Message::CookieReply(reply) => (self.take_cookie(reply, now)?, true),
        };
        Ok(Received { peer, live, packet: 0..0 })
    }

    fn open(
        &mut self,
        data: Data,
        datagram: &mut [u8],
        source: SocketAddr,
        now: Now,
    ) -> Result<Received, Dropped> {
        let peer = self.peer_by(data.receiver)?;
        let opened = self.with(peer, |peer, shared| peer.open(data, datagram, source, now, shared));
        let packet = opened.map_err(|reason| reason.by(peer))?;
        Ok(Received { peer, live: true, packet })
    }

    fn respond(
        &mut self,
        initiation: Initiation,
        source: SocketAddr,
        now: Now,
    ) -> Result<PeerIndex, Dropped> {
        let local = self.admit(initiation.bytes(), source, now).map_err(|reason| reason.by(None))?;
        let responder = self.identify(initiation, local).map_err(|reason| reason.by(None))?;
        let (suite, responder) = responder;
        let known = self.by_key.get(&responder.remote).copied();
        let peer = known.ok_or_else(|| DropReason::KeyUnknown.by(None))?;
        if self.states[peer.0].keys.suite != suite {
            return Err(DropReason::SuiteMismatch.by(peer));
        }
        let answered = self.with(peer, |peer, shared| peer.respond(responder, source, now, shared));
        answered.map(|()| peer).map_err(|reason| reason.by(peer))
    }

    /// Who began a handshake, and with which suite: that which opens it.
    fn identify(&mut self, initiation: Initiation, local: usize) -> Result<(Suite, Responder), DropReason> {
        let Self { shared, users, locals, .. } = self;
        let mut open = |suite: Suite| {
            let ephemeral = shared.ephemeral();
            Responder::open(&locals[local].private_key, suite, initiation, ephemeral)
                .map(|opened| (suite, opened))
        };
        let used = |suite: &Suite| users[*suite as usize] > 0;
        let opened = Suite::ALL.into_iter().filter(used).find_map(|suite| open(suite).ok());
        opened.ok_or(DropReason::HandshakeInvalid)
    }

    fn finish(&mut self, response: Response, source: SocketAddr, now: Now) -> Result<PeerIndex, Dropped> {
        self.admit(response.bytes(), source, now).map_err(|reason| reason.by(None))?;
        let peer = self.peer_by(response.receiver())?;
        let finished = self.with(peer, |peer, shared| peer.finish(response, source, now, shared));
        finished.map(|()| peer).map_err(|reason| reason.by(peer))
    }

    fn take_cookie(&mut self, reply: CookieReply, now: Now) -> Result<PeerIndex, Dropped> {
        let peer = self.peer_by(reply.receiver())?;
        let taken = self.with(peer, |peer, _| peer.take_cookie(reply, now));
        taken.map(|()| peer).map_err(|reason| reason.by(peer))
    }

    /// Whether a handshake message is worth its cost, and which of this host's keys it is for.
    fn admit(&mut self, message: &[u8], source: SocketAddr, now: Now) -> Result<usize, DropReason> {
        let addressed = self.locals.iter().position(|local| local.checker.mac1_is_valid(message));
        let local = addressed.ok_or(DropReason::Mac1Invalid)?;
        if !self.load.is_heavy(now.time) {
            return Ok(local);
        }
        let checker = &mut self.locals[local].checker;
        if !checker.mac2_is_valid(message, source, now.time) {
            if !self.load.grants_cookie() {
                return Err(DropReason::HandshakeRate);
            }
            let reply = checker.reply(message, source, now.time, &mut self.shared.random);
            let transmit =
                Output::Transmit { peer: None, endpoint: source, message: reply.to_vec(), packet_len: 0 };
            self.shared.outputs.push_back(transmit);
            return Err(DropReason::CookieRequired);
        }
        if self.limiter.admits(source.ip(), now.time) { Ok(local) } else { Err(DropReason::HandshakeRate) }
    }

    fn peer_by(&self, index: u32) -> Result<PeerIndex, Dropped> {
        self.shared.indexes.get(&index).copied().ok_or(DropReason::IndexUnknown.by(None))
    }
}
