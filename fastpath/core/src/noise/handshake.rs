//! The two messages after which both ends hold the same keys: Noise `IKpsk2`, by `snow`.
//!
//! ```text
//! initiator  initiate ─ initiation ─►  open      responder: now it knows who asks
//!            finish   ◄─ response ───  respond   with that peer's preshared key
//! ```

use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, Error, HandshakeState};
use x25519_dalek::{PublicKey as Point, StaticSecret};
use zeroize::Zeroizing;

use super::aead::{Key, Suite};
use super::keys::{PeerKeys, PresharedKey, PrivateKey, PublicKey};
use super::tai64n::{self, Tai64n};
use crate::drops::DropReason;
use crate::wire::field;
use crate::wire::wireguard::{
    self, INITIATION_LEN, Initiation, NOISE_INITIATION_LEN, NOISE_RESPONSE_LEN, RESPONSE_LEN, Response,
    TAG_LEN,
};

const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// Where `psk2` has its preshared key: after the second message.
const PSK_PLACE: usize = 2;

/// A fresh secret for one handshake, from the caller's random source.
pub type Ephemeral = Zeroizing<[u8; 32]>;

/// What a handshake yields: the keys of the two directions, as this end sees them.
#[derive(Debug)]
pub struct TransportKeys {
    /// For what this end sends.
    pub seal: Key,
    /// For what it receives.
    pub open: Key,
}

/// A handshake that this end began and that was not answered yet.
#[derive(Debug)]
pub struct Initiator {
    suite: Suite,
    state: HandshakeState,
}

/// A handshake that another host began, opened: who it is and when it asked.
#[derive(Debug)]
pub struct Responder {
    suite: Suite,
    state: HandshakeState,
    sender: u32,
    /// Whoever holds the private key of this made the initiation, now or earlier.
    pub remote: PublicKey,
    /// Must be newer than in any initiation accepted from it, else this is a replay.
    pub stamp: Tai64n,
}

impl Initiator {
    /// Begins a handshake with `remote`; `index` is what the answer is to name.
    ///
    /// # Errors
    /// `handshake_invalid`: the public key is one that no honest host has.
    pub fn initiate(
        local: &PrivateKey,
        remote: &PeerKeys,
        index: u32,
        stamp: Tai64n,
        ephemeral: Ephemeral,
    ) -> Result<(Self, [u8; INITIATION_LEN]), DropReason> {
        let mut state = new_state(local, remote.suite, ephemeral, Some(&remote.public_key));
        state.set_psk(PSK_PLACE, remote.preshared_key.bytes()).expect("the pattern has this place");
        let mut noise = [0; NOISE_INITIATION_LEN];
        state.write_message(&stamp, &mut noise).map_err(|_| DropReason::HandshakeInvalid)?;
        Ok((Self { suite: remote.suite, state }, wireguard::emit_initiation(index, &noise)))
    }

    /// Reads the answer. After a forged one, the true one is still taken.
    ///
    /// # Errors
    /// `handshake_invalid`.
    pub fn finish(&mut self, response: Response) -> Result<TransportKeys, DropReason> {
        let read = self.state.read_message(response.noise(), &mut [0; TAG_LEN]);
        read.map_err(|_| DropReason::HandshakeInvalid)?;
        let (ours, theirs) = split(&mut self.state);
        Ok(TransportKeys { seal: Key::new(self.suite, &ours), open: Key::new(self.suite, &theirs) })
    }
}

impl Responder {
    /// Opens an initiation that is expected to use `suite`.
    ///
    /// # Errors
    /// `handshake_invalid`: changed on the way, another suite, or not meant for this host.
    pub fn open(
        local: &PrivateKey,
        suite: Suite,
        initiation: Initiation,
        ephemeral: Ephemeral,
    ) -> Result<Self, DropReason> {
        let mut state = new_state(local, suite, ephemeral, None);
        let mut payload = [0; tai64n::LEN + TAG_LEN];
        let read = state.read_message(initiation.noise(), &mut payload);
        read.map_err(|_| DropReason::HandshakeInvalid)?;
        let remote: Option<[u8; 32]> = state.get_remote_static().and_then(|key| key.try_into().ok());
        let remote = PublicKey::from(remote.ok_or(DropReason::HandshakeInvalid)?);
        let stamp = field(&payload, 0..tai64n::LEN);
        Ok(Self { suite, state, sender: initiation.sender(), remote, stamp })
    }

    /// Answers; `index` is what data to this end is to name.
    ///
    /// # Errors
    /// `handshake_invalid`: the initiator sent a key that no honest host makes.
    pub fn respond(
        mut self,
        psk: &PresharedKey,
        index: u32,
    ) -> Result<(TransportKeys, [u8; RESPONSE_LEN]), DropReason> {
        self.state.set_psk(PSK_PLACE, psk.bytes()).expect("the pattern has this place");
        let mut noise = [0; NOISE_RESPONSE_LEN];
        self.state.write_message(&[], &mut noise).map_err(|_| DropReason::HandshakeInvalid)?;
        let (theirs, ours) = split(&mut self.state);
        let keys = TransportKeys { seal: Key::new(self.suite, &ours), open: Key::new(self.suite, &theirs) };
        Ok((keys, wireguard::emit_response(index, self.sender, &noise)))
    }

    /// The index by which the initiator knows itself.
    #[must_use]
    pub fn sender(&self) -> u32 {
        self.sender
    }
}

/// The keys of a finished handshake: the initiator's, the responder's.
fn split(state: &mut HandshakeState) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
    let (initiator, responder) = state.dangerously_get_raw_split();
    (Zeroizing::new(initiator), Zeroizing::new(responder))
}

/// An initiator if the remote's key is given, else a responder.
fn new_state(
    local: &PrivateKey,
    suite: Suite,
    ephemeral: Ephemeral,
    remote: Option<&PublicKey>,
) -> HandshakeState {
    let build = || {
        let params: NoiseParams = suite.protocol().parse()?;
        let builder = Builder::with_resolver(params, Box::new(Primitives { ephemeral }))
            .local_private_key(local.bytes())?
            .prologue(PROLOGUE)?;
        match remote {
            Some(remote) => builder.remote_public_key(remote.bytes())?.build_initiator(),
            None => builder.build_responder(),
        }
    };
    build().expect("the pattern, its primitives and the lengths of its keys are fixed")
}

/// Gives `snow` its primitives: randomness from the caller, keys that are wiped, the same ciphers
/// that packets are sealed with.
struct Primitives {
    ephemeral: Ephemeral,
}

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Given(Some(self.ephemeral.clone()))))
    }

    fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(X25519::default()))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        let suite = match choice {
            CipherChoice::ChaChaPoly => Suite::ChaChaPoly,
            CipherChoice::AESGCM => Suite::AesGcm,
        };
        Some(Box::new(HandshakeCipher { suite, key: Key::new(suite, &[0; 32]) }))
    }
}

/// Random bytes for the one ephemeral key that a handshake makes.
struct Given(Option<Ephemeral>);

impl Random for Given {
    fn try_fill_bytes(&mut self, destination: &mut [u8]) -> Result<(), Error> {
        let given = self.0.take().filter(|given| given.len() == destination.len());
        destination.copy_from_slice(&*given.ok_or(Error::Rng)?);
        Ok(())
    }
}

#[derive(Default)]
struct X25519 {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        self.private.copy_from_slice(private);
        self.public = Point::from(&StaticSecret::from(*self.private)).to_bytes();
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        let mut private = Ephemeral::default();
        random.try_fill_bytes(&mut *private)?;
        self.set(&*private);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &*self.private
    }

    /// Refuses points of low order, as WireGuard does: their secret would be known to all.
    fn dh(&self, public: &[u8], secret: &mut [u8]) -> Result<(), Error> {
        let public: [u8; 32] = public.get(..32).and_then(|key| key.try_into().ok()).ok_or(Error::Dh)?;
        let shared = StaticSecret::from(*self.private).diffie_hellman(&Point::from(public));
        if !shared.was_contributory() {
            return Err(Error::Dh);
        }
        secret[..32].copy_from_slice(shared.as_bytes());
        Ok(())
    }
}

struct HandshakeCipher {
    suite: Suite,
    key: Key,
}

impl Cipher for HandshakeCipher {
    fn name(&self) -> &'static str {
        match self.suite {
            Suite::ChaChaPoly => "ChaChaPoly",
            Suite::AesGcm => "AESGCM",
        }
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.key = Key::new(self.suite, key);
    }

    fn encrypt(&self, nonce: u64, authenticated: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        let sealed = &mut out[..plain.len() + TAG_LEN];
        sealed[..plain.len()].copy_from_slice(plain);
        self.key.seal(nonce, authenticated, sealed);
        sealed.len()
    }

    fn decrypt(
        &self,
        nonce: u64,
        authenticated: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let mut buffer = Zeroizing::new(sealed.to_vec());
        self.key.open(nonce, authenticated, &mut buffer).map_err(|_| Error::Decrypt)?;
        let len = sealed.len() - TAG_LEN;
        out[..len].copy_from_slice(&buffer[..len]);
        Ok(len)
    }
}

#[cfg(test)]
mod vectors;

#[cfg(test)]
mod tests {
    //! `snow` against the formulas of the WireGuard paper, section 5.4, written out here once more.

    use blake2::Blake2s256;
    use blake2::digest::Digest;

    use super::*;
    use crate::wire::field;
    use crate::wire::wireguard::{HEADER_LEN, Message};

    fn hash(parts: &[&[u8]]) -> [u8; 32] {
        parts.iter().fold(Blake2s256::new(), Digest::chain_update).finalize().into()
    }

    /// RFC 2104.
    fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        let pad = |with: u8| {
            let mut block = [with; 64];
            block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
            block
        };
        let inner = parts.iter().fold(Blake2s256::new().chain_update(pad(0x36)), Digest::chain_update);
        hash(&[&pad(0x5c), &inner.finalize()])
    }

    fn kdf(key: &[u8], input: &[u8]) -> [[u8; 32]; 3] {
        let secret = hmac(key, &[input]);
        let first = hmac(&secret, &[&[1]]);
        let second = hmac(&secret, &[&first, &[2]]);
        [first, second, hmac(&secret, &[&second, &[3]])]
    }

    fn dh(private: &[u8; 32], public: &[u8]) -> [u8; 32] {
        let public: [u8; 32] = public.try_into().unwrap();
        StaticSecret::from(*private).diffie_hellman(&Point::from(public)).to_bytes()
    }

    fn public(private: &[u8; 32]) -> [u8; 32] {
        Point::from(&StaticSecret::from(*private)).to_bytes()
    }

    /// What a responder makes of an initiation: whom it is from, its stamp, the response, and the
    /// keys of the initiator and of the responder.
    fn respond(
        suite: Suite,
        local: [u8; 32],
        psk: [u8; 32],
        initiation: &[u8],
    ) -> ([u8; 32], Vec<u8>, Vec<u8>, [[u8; 32]; 2]) {
        let open = |key: &[u8; 32], authenticated: &[u8; 32], sealed: &[u8]| {
            let mut buffer = sealed.to_vec();
            Key::new(suite, key).open(0, authenticated, &mut buffer).unwrap();
            buffer.truncate(sealed.len() - TAG_LEN);
            buffer
        };
        let (theirs, sealed_key, sealed_stamp) =
            (&initiation[8..40], &initiation[40..88], &initiation[88..116]);
        let construction = suite.protocol().as_bytes();
        // Noise pads a name of up to 32 bytes with zeros and hashes a longer one.
        let chain = if construction.len() <= 32 {
            let mut padded = [0; 32];
            padded[..construction.len()].copy_from_slice(construction);
            padded
        } else {
            hash(&[construction])
        };
        let h = hash(&[&chain, b"WireGuard v1 zx2c4 Jason@zx2c4.com"]);
        let h = hash(&[&h, &public(&local)]);
        let h = hash(&[&h, theirs]);
        let [chain, ..] = kdf(&chain, theirs);
        let [chain, key, _] = kdf(&chain, &dh(&local, theirs));
        let remote = open(&key, &h, sealed_key);
        let h = hash(&[&h, sealed_key]);
        let [chain, key, _] = kdf(&chain, &dh(&local, &remote));
        let stamp = open(&key, &h, sealed_stamp);
        let h = hash(&[&h, sealed_stamp]);

        let ephemeral = [77; 32];
        let ours = public(&ephemeral);
        let h = hash(&[&h, &ours]);
        let [chain, ..] = kdf(&chain, &ours);
        let [chain, ..] = kdf(&chain, &dh(&ephemeral, theirs));
        let [chain, ..] = kdf(&chain, &dh(&ephemeral, &remote));
        let [chain, middle, key] = kdf(&chain, &psk);
        let h = hash(&[&h, &middle]);
        let mut empty = [0; TAG_LEN];
        Key::new(suite, &key).seal(0, &h, &mut empty);
        let [initiator, responder, _] = kdf(&chain, &[]);
        let noise = field(&[ours.as_slice(), &empty].concat(), 0..NOISE_RESPONSE_LEN);
        let response = wireguard::emit_response(5, 4, &noise).to_vec();
        (remote.try_into().unwrap(), stamp, response, [initiator, responder])
    }

    #[test]
    fn the_initiator_agrees_with_the_paper() {
        for suite in Suite::ALL {
            let (local, remote) = (PrivateKey::from([1; 32]), PrivateKey::from([2; 32]));
            let peer = PeerKeys {
                public_key: remote.public(),
                previous: None,
                preshared_key: PresharedKey::from([3; 32]),
                suite,
                keepalive: None,
            };
            let (mut initiator, initiation) =
                Initiator::initiate(&local, &peer, 4, [9; 12], Ephemeral::new([6; 32])).unwrap();
            let (seen, stamp, response, keys) = respond(suite, [2; 32], [3; 32], &initiation);
            assert_eq!((&seen, stamp.as_slice()), (local.public().bytes(), [9; 12].as_slice()));
            let Ok(Message::Response(response)) = Message::new_checked(&response) else {
                panic!("no response")
            };
            let made = initiator.finish(response).unwrap();
            assert_same(suite, &made.seal, &keys[0]);
            assert_same(suite, &made.open, &keys[1]);
        }
    }

    fn assert_same(suite: Suite, made: &Key, expected: &[u8; 32]) {
        let [mut one, mut other] = [[0; HEADER_LEN + TAG_LEN]; 2];
        made.seal(1, &[], &mut one);
        Key::new(suite, expected).seal(1, &[], &mut other);
        assert_eq!(one, other);
    }
}
