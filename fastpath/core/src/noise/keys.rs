//! Keys of hosts, as WireGuard has them: 32 bytes each.

use std::fmt;
use std::time::Duration;

use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::aead::Suite;

/// What a host keeps to itself. Wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

/// The private keys of a host: one, or two while it changes from one to the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKeys {
    /// What it begins handshakes with.
    pub own: PrivateKey,
    /// What others may begin handshakes for as well.
    pub other: Option<PrivateKey>,
}

/// What others know a host by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

/// A secret that two hosts share beforehand, mixed into their handshakes. Wiped when dropped; all
/// zeros, the default, is none.
#[derive(Clone, Default, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);

/// What the peer map says of a sealed peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerKeys {
    /// Who it is.
    pub public_key: PublicKey,
    /// Who it was, while it changes its key: it may still begin handshakes as that.
    pub previous: Option<PublicKey>,
    /// All zeros: none.
    pub preshared_key: PresharedKey,
    /// The cipher to use with it.
    pub suite: Suite,
    /// Say something this often, to keep a NAT open.
    pub keepalive: Option<Duration>,
}

impl PeerKeys {
    /// A peer with this public key, and for the rest what every WireGuard takes.
    #[must_use]
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            previous: None,
            preshared_key: PresharedKey::default(),
            suite: Suite::default(),
            keepalive: None,
        }
    }

    /// All that it is known by, the newest first.
    pub fn names(&self) -> impl Iterator<Item = PublicKey> {
        [self.public_key].into_iter().chain(self.previous)
    }
}

impl HostKeys {
    /// Both, what it begins handshakes with first.
    pub fn iter(&self) -> impl Iterator<Item = &PrivateKey> {
        [&self.own].into_iter().chain(&self.other)
    }
}

impl From<PrivateKey> for HostKeys {
    fn from(own: PrivateKey) -> Self {
        Self { own, other: None }
    }
}

impl PrivateKey {
    /// The public key that belongs to it.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&StaticSecret::from(self.0)).to_bytes())
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PublicKey {
    /// The key as it is on the wire.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PresharedKey {
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for PrivateKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl From<[u8; 32]> for PublicKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl From<[u8; 32]> for PresharedKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PrivateKey(…)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PresharedKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_is_the_one_that_wg_pubkey_prints() {
        let public = [
            0xa4, 0xe0, 0x92, 0x92, 0xb6, 0x51, 0xc2, 0x78, 0xb9, 0x77, 0x2c, 0x56, 0x9f, 0x5f, 0xa9, 0xbb,
            0x13, 0xd9, 0x06, 0xb4, 0x6a, 0xb6, 0x8c, 0x9d, 0xf9, 0xdc, 0x2b, 0x44, 0x09, 0xf8, 0xa2, 0x09,
        ];
        assert_eq!(PrivateKey::from([1; 32]).public(), PublicKey::from(public));
    }

    #[test]
    fn secrets_are_not_printed() {
        assert_eq!(format!("{:?}", PrivateKey::from([1; 32])), "PrivateKey(…)");
        assert_eq!(format!("{:?}", PresharedKey::from([1; 32])), "PresharedKey(…)");
    }
}
