//! The two codes at the end of a handshake message: section 5.4.4 and 5.4.7 of the WireGuard paper.
//!
//! mac1 proves that its sender knows the receiver's public key, so a host is silent to scanners. mac2
//! proves that it receives what is sent to its address: a host under load answers messages without it
//! by a sealed cookie only, and the cookie is the key of mac2.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use blake2::digest::consts::U16;
use blake2::digest::{Digest, Mac};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};

use super::keys::PublicKey;
use crate::drops::DropReason;
use crate::wire::field;
use crate::wire::wireguard::{self, COOKIE_REPLY_LEN, CookieReply, MAC_LEN, TAG_LEN};

/// How long the secret behind the cookies is kept, and a cookie is used.
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(120);

const MAC1_LABEL: &[u8] = b"mac1----";
const COOKIE_LABEL: &[u8] = b"cookie--";

type Code = [u8; MAC_LEN];

/// What is derived from a host's public key: the keys of mac1 to it and of cookies from it.
#[derive(Debug, Clone)]
struct Derived {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl Derived {
    fn new(public: &PublicKey) -> Self {
        let hash = |label| Blake2s256::new().chain_update(label).chain_update(public.bytes()).finalize();
        Self { mac1: hash(MAC1_LABEL).into(), cookie: hash(COOKIE_LABEL).into() }
    }
}

/// Judges the codes on what comes in.
#[derive(Debug)]
pub struct Checker {
    derived: Derived,
    /// What cookies are made with, and when it was drawn.
    secret: Option<([u8; 32], Duration)>,
}

impl Checker {
    /// For messages to the host with this public key.
    #[must_use]
    pub fn new(public: &PublicKey) -> Self {
        Self { derived: Derived::new(public), secret: None }
    }

    /// Whether the sender of a handshake message knows this host's public key.
    #[must_use]
    pub fn mac1_is_valid(&self, message: &[u8]) -> bool {
        let (signed, mac1, _) = split(message);
        mac(&self.derived.mac1, &[signed]).verify_slice(mac1).is_ok()
    }

    /// Whether it has a cookie that was made for this address.
    #[must_use]
    pub fn mac2_is_valid(&self, message: &[u8], source: SocketAddr, now: Duration) -> bool {
        let Some(secret) = self.fresh_secret(now) else { return false };
        let (_, _, mac2) = split(message);
        let signed = &message[..message.len() - MAC_LEN];
        mac(&cookie(secret, source), &[signed]).verify_slice(mac2).is_ok()
    }

    /// The answer to a handshake message without a valid cookie.
    pub fn reply(
        &mut self,
        message: &[u8],
        source: SocketAddr,
        now: Duration,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> [u8; COOKIE_REPLY_LEN] {
        if self.fresh_secret(now).is_none() {
            let mut secret = [0; 32];
            random(&mut secret);
            self.secret = Some((secret, now));
        }
        let secret = self.fresh_secret(now).expect("it was just drawn");
        let (mut nonce, mut sealed) = ([0; 24], [0; MAC_LEN + TAG_LEN]);
        random(&mut nonce);
        let (plain, room) = sealed.split_at_mut(MAC_LEN);
        plain.copy_from_slice(&cookie(secret, source));
        let cipher = XChaCha20Poly1305::new(&self.derived.cookie.into());
        let (_, mac1, _) = split(message);
        let tag = cipher.encrypt_in_place_detached(&nonce.into(), mac1, plain);
        room.copy_from_slice(&tag.expect("a cookie is short"));
        wireguard::emit_cookie_reply(wireguard::sender_of(message), &nonce, &sealed)
    }

    fn fresh_secret(&self, now: Duration) -> Option<&[u8; 32]> {
        let fresh = |born: &Duration| now < *born + COOKIE_LIFETIME;
        self.secret.as_ref().filter(|(_, born)| fresh(born)).map(|(secret, _)| secret)
    }
}

/// Writes the codes on what goes out to one peer.
#[derive(Debug)]
pub struct Signer {
    derived: Derived,
    /// mac1 of the newest message: what a cookie reply is bound to.
    newest_mac1: Option<Code>,
    /// The newest cookie and when it came.
    cookie: Option<(Code, Duration)>,
}

impl Signer {
    /// For messages to the host with this public key.
    #[must_use]
    pub fn new(public: &PublicKey) -> Self {
        Self { derived: Derived::new(public), newest_mac1: None, cookie: None }
    }

    /// Writes mac1, and mac2 if there is a cookie, into a handshake message.
    pub fn sign(&mut self, message: &mut [u8], now: Duration) {
        let (signed, codes) = message.split_at_mut(message.len() - 2 * MAC_LEN);
        let mac1: Code = mac(&self.derived.mac1, &[signed]).finalize().into_bytes().into();
        codes[..MAC_LEN].copy_from_slice(&mac1);
        self.newest_mac1 = Some(mac1);
        let fresh = |born: &Duration| now < *born + COOKIE_LIFETIME;
        if let Some((cookie, _)) = self.cookie.as_ref().filter(|(_, born)| fresh(born)) {
            let mac2: Code = mac(cookie, &[signed, &mac1]).finalize().into_bytes().into();
            codes[MAC_LEN..].copy_from_slice(&mac2);
        }
    }

    /// Takes a cookie for the next messages.
    ///
    /// # Errors
    /// `cookie_invalid`: not sealed by that peer for the newest message sent to it.
    pub fn take(&mut self, reply: CookieReply, now: Duration) -> Result<(), DropReason> {
        let mac1 = self.newest_mac1.ok_or(DropReason::CookieInvalid)?;
        let mut sealed = reply.sealed();
        let (plain, tag) = sealed.split_at_mut(MAC_LEN);
        let cipher = XChaCha20Poly1305::new(&self.derived.cookie.into());
        cipher
            .decrypt_in_place_detached(&reply.nonce().into(), &mac1, plain, (&*tag).into())
            .map_err(|_| DropReason::CookieInvalid)?;
        // One message, one cookie.
        self.newest_mac1 = None;
        self.cookie = Some((field(plain, 0..MAC_LEN), now));
        Ok(())
    }
}

/// A handshake message: what mac1 covers, mac1, mac2.
fn split(message: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let (signed, codes) = message.split_at(message.len() - 2 * MAC_LEN);
    let (mac1, mac2) = codes.split_at(MAC_LEN);
    (signed, mac1, mac2)
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Blake2sMac<U16> {
    let mac = <Blake2sMac<U16> as Mac>::new_from_slice(key).expect("BLAKE2s takes keys of up to 32 bytes");
    parts.iter().fold(mac, Mac::chain_update)
}

fn cookie(secret: &[u8; 32], source: SocketAddr) -> Code {
    let port = source.port().to_be_bytes();
    let mac = match source.ip() {
        IpAddr::V4(ip) => mac(secret, &[&ip.octets(), &port]),
        IpAddr::V6(ip) => mac(secret, &[&ip.octets(), &port]),
    };
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::wireguard::{Message, NOISE_INITIATION_LEN};

    const START: Duration = Duration::from_secs(1000);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn initiation() -> Vec<u8> {
        wireguard::emit_initiation(9, &[1; NOISE_INITIATION_LEN]).to_vec()
    }

    fn reply(bytes: &[u8]) -> CookieReply<'_> {
        let Ok(Message::CookieReply(reply)) = Message::new_checked(bytes) else { panic!("no cookie reply") };
        reply
    }

    #[test]
    fn mac1_is_for_one_host_and_one_message() {
        let (here, there) = (PublicKey::from([1; 32]), PublicKey::from([2; 32]));
        let mut message = initiation();
        Signer::new(&here).sign(&mut message, START);
        assert!(Checker::new(&here).mac1_is_valid(&message));
        assert!(!Checker::new(&there).mac1_is_valid(&message));
        message[20] ^= 1;
        assert!(!Checker::new(&here).mac1_is_valid(&message));
    }

    #[test]
    fn a_cookie_proves_an_address_for_two_minutes() {
        let host = PublicKey::from([1; 32]);
        let (mut signer, mut checker) = (Signer::new(&host), Checker::new(&host));
        let [source, other] = ["192.0.2.1:1", "192.0.2.1:2"].map(address);
        let mut random = |bytes: &mut [u8]| bytes.fill(7);

        let mut message = initiation();
        signer.sign(&mut message, START);
        assert!(!checker.mac2_is_valid(&message, source, START));
        let answer = checker.reply(&message, source, START, &mut random);
        assert_eq!(reply(&answer).receiver(), 9);
        signer.take(reply(&answer), START).unwrap();
        assert_eq!(signer.take(reply(&answer), START), Err(DropReason::CookieInvalid), "taken twice");

        signer.sign(&mut message, START);
        assert!(checker.mac1_is_valid(&message));
        assert!(checker.mac2_is_valid(&message, source, START));
        assert!(!checker.mac2_is_valid(&message, other, START));
        assert!(!checker.mac2_is_valid(&message, source, START + COOKIE_LIFETIME));
        signer.sign(&mut initiation(), START + COOKIE_LIFETIME);
    }

    #[test]
    fn a_cookie_from_another_or_for_another_message_is_refused() {
        let host = PublicKey::from([1; 32]);
        let mut random = |bytes: &mut [u8]| bytes.fill(7);
        let source = address("[2001:db8::1]:1");
        let mut signer = Signer::new(&host);
        let mut message = initiation();
        let answer = Checker::new(&host).reply(&message, source, START, &mut random);
        assert_eq!(signer.take(reply(&answer), START), Err(DropReason::CookieInvalid), "never asked");
        signer.sign(&mut message, START);
        assert_eq!(signer.take(reply(&answer), START), Err(DropReason::CookieInvalid), "another mac1");
        let forged = Checker::new(&PublicKey::from([2; 32])).reply(&message, source, START, &mut random);
        assert_eq!(signer.take(reply(&forged), START), Err(DropReason::CookieInvalid), "another host");
    }
}
