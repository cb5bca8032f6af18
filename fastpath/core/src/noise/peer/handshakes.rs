//! The handshakes of one peer: begun, answered, finished; what they do to its sessions.

use std::net::SocketAddr;
use std::time::Duration;

use super::{INITIATION_INTERVAL, Peer, REKEY_JITTER, REKEY_TIMEOUT, WIPE_AFTER};
use crate::drops::DropReason;
use crate::noise::handshake::{Initiator, Responder};
use crate::noise::peers::{Now, Output};
use crate::noise::session::{Role, Session};
use crate::noise::shared::Shared;
use crate::noise::tai64n::{self, Tai64n};
use crate::noise::timers::Timer;
use crate::wire::wireguard::{CookieReply, Response};

/// With which of its keys this host begins, while it changes them: who does not answer one may know the
/// other alone.
#[derive(Debug, Default)]
pub(super) struct Turn {
    with_other: bool,
    unanswered: bool,
}

impl Turn {
    /// Whether the next initiation is begun with the other key.
    fn begin(&mut self) -> bool {
        self.with_other ^= std::mem::replace(&mut self.unanswered, true);
        self.with_other
    }

    /// Lets the next be begun as the last one was: it was answered by a cookie.
    fn keep(&mut self) {
        self.unanswered = false;
    }
}

impl Peer {
    /// Sends an initiation unless one was just sent.
    pub(super) fn begin_handshake(&mut self, now: Now, shared: &mut Shared) {
        self.attempts = 0;
        self.initiate(now, shared);
    }

    pub(super) fn initiate(&mut self, now: Now, shared: &mut Shared) {
        let Some(endpoint) = self.endpoint else { return };
        if self.initiation_sent.is_some_and(|sent| now.time < sent + REKEY_TIMEOUT) {
            return;
        }
        self.initiation_sent = Some(now.time);
        self.jitter = shared.jitter(REKEY_JITTER);
        self.forget_initiation(shared);
        match self.new_initiation(now, shared) {
            Ok(message) => shared.transmit(self.at, endpoint, message),
            Err(reason) => shared.drop(reason.by(self.at)),
        }
        self.has_sent(now.time);
        self.timers.arm(Timer::Retransmit, now.time + REKEY_TIMEOUT + self.jitter);
    }

    fn new_initiation(&mut self, now: Now, shared: &mut Shared) -> Result<Vec<u8>, DropReason> {
        let (stamp, ephemeral) = (self.next_stamp(now.unix, shared.lane), shared.ephemeral());
        let index = shared.new_index(self.at);
        let private_key = shared.private_key(self.turn.begin());
        let begun = Initiator::initiate(private_key, &self.keys, index, stamp, ephemeral);
        let (initiator, mut message) = begun.inspect_err(|_| shared.release(index))?;
        self.initiator = Some((index, initiator));
        self.signer.sign(&mut message, now.time);
        Ok(message.to_vec())
    }

    /// Newer than any before, even if the wall clock was set back.
    fn next_stamp(&mut self, unix: Duration, lane: u8) -> Tai64n {
        self.newest_sent = unix.max(self.newest_sent + tai64n::GRAIN);
        tai64n::stamp(self.newest_sent, lane)
    }

    pub(super) fn forget_initiation(&mut self, shared: &mut Shared) {
        if let Some((index, _)) = self.initiator.take() {
            shared.release(index);
        }
    }

    /// Takes the answer to this end's initiation.
    pub(in crate::noise) fn finish(
        &mut self,
        response: Response,
        source: SocketAddr,
        now: Now,
        shared: &mut Shared,
    ) -> Result<(), DropReason> {
        let outstanding = self.initiator.as_mut().filter(|(index, _)| *index == response.receiver());
        let (index, initiator) = outstanding.ok_or(DropReason::IndexUnknown)?;
        let keys = initiator.finish(response)?;
        let session = Session::new(*index, response.sender(), Role::Initiator, keys, now.time);
        self.initiator = None;
        self.move_to(Some(source), shared);
        self.has_received(now.time);

        // A session that this end answered for is newer than the current one.
        let older = if self.next.is_some() { &mut self.next } else { &mut self.current };
        let previous = std::mem::replace(&mut self.previous, older.take());
        shared.retire(previous);
        shared.retire(self.current.replace(Box::new(session)));
        self.session_made(now.time);
        self.handshake_done(shared);
        self.flush(true, now, shared);
        Ok(())
    }

    /// Answers an initiation of this peer's. It may be an old one, played again to another lane or after a
    /// restart of this host: an answer is all that it gets.
    pub(in crate::noise) fn respond(
        &mut self,
        responder: Responder,
        source: SocketAddr,
        now: Now,
        shared: &mut Shared,
    ) -> Result<(), DropReason> {
        if tai64n::lane(&responder.stamp) != shared.lane || responder.stamp <= self.newest_stamp {
            return Err(DropReason::HandshakeReplayed);
        }
        if self.initiation_accepted.is_some_and(|accepted| now.time < accepted + INITIATION_INTERVAL) {
            return Err(DropReason::HandshakeRate);
        }
        let (stamp, remote) = (responder.stamp, responder.sender());
        let index = shared.new_index(self.at);
        let (keys, mut message) =
            responder.respond(&self.keys.preshared_key, index).inspect_err(|_| shared.release(index))?;
        self.newest_stamp = stamp;
        self.initiation_accepted = Some(now.time);
        let session = Session::new(index, remote, Role::Responder, keys, now.time);
        shared.retire(self.next.replace(Box::new(session)));
        self.session_made(now.time);
        self.signer.sign(&mut message, now.time);
        shared.transmit(self.at, source, message.to_vec());
        Ok(())
    }

    /// Takes a cookie; the next attempt uses it.
    pub(in crate::noise) fn take_cookie(&mut self, reply: CookieReply, now: Now) -> Result<(), DropReason> {
        self.signer.take(reply, now.time)?;
        self.turn.keep();
        Ok(())
    }

    fn session_made(&mut self, now: Duration) {
        self.timers.arm(Timer::Wipe, now + WIPE_AFTER);
    }

    pub(super) fn handshake_done(&mut self, shared: &mut Shared) {
        shared.report(Output::Connected(self.at));
        self.timers.cancel(Timer::Retransmit);
        self.attempts = 0;
        self.turn = Turn::default();
        self.renewed = false;
    }
}
