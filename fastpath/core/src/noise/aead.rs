//! The ciphers that packets are sealed with, and whose code does it.
//!
//! AWS-LC runs anywhere and wipes keys, which `ring` does not; neither of them has `ChaCha20`-Poly1305 for
//! AVX-512. Intel's ipsec-mb has: on a Sapphire Rapids, 1408 bytes cost it 440 ns by `ChaCha20` and 115 by AES,
//! AWS-LC 730 and 165. Without AVX-512 it is the slower one.

use std::fmt;
use std::sync::OnceLock;

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use overmesh_ipsec_mb::Avx512;

use crate::wire::wireguard::TAG_LEN;

/// Which cipher a peer's handshake and packets use. It is part of the Noise protocol's name, so two
/// hosts that disagree cannot complete a handshake, and nobody between them can change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Suite {
    /// ChaCha20-Poly1305: what every WireGuard speaks.
    #[default]
    ChaChaPoly,
    /// AES-256-GCM: several times faster on most of today's processors; Overmesh only.
    AesGcm,
}

impl Suite {
    /// All suites.
    pub const ALL: [Self; 2] = [Self::ChaChaPoly, Self::AesGcm];

    /// The name of the whole Noise protocol.
    #[must_use]
    pub const fn protocol(self) -> &'static str {
        match self {
            Self::ChaChaPoly => "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
            Self::AesGcm => "Noise_IKpsk2_25519_AESGCM_BLAKE2s",
        }
    }

    /// The nonce of a counter: Noise, revision 34, sections 12.3 and 12.4.
    fn nonce(self, counter: u64) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&match self {
            Self::ChaChaPoly => counter.to_le_bytes(),
            Self::AesGcm => counter.to_be_bytes(),
        });
        nonce
    }
}

static ACCELERATOR: OnceLock<Avx512> = OnceLock::new();

/// Has the keys that this process makes from now on use AVX-512.
///
/// # Errors
/// Why they can't.
pub fn accelerate() -> Result<(), &'static str> {
    let avx512 = Avx512::detect()?;
    ACCELERATOR.get_or_init(|| avx512);
    Ok(())
}

/// A key, scheduled once, and wiped when it is dropped.
pub struct Key {
    suite: Suite,
    cipher: Cipher,
}

/// Whose code it is.
enum Cipher {
    AwsLc(LessSafeKey),
    IpsecMb(overmesh_ipsec_mb::Key),
}

impl Cipher {
    fn aws_lc(suite: Suite, key: &[u8; 32]) -> Self {
        let algorithm = match suite {
            Suite::ChaChaPoly => &CHACHA20_POLY1305,
            Suite::AesGcm => &AES_256_GCM,
        };
        let key = UnboundKey::new(algorithm, key).expect("both ciphers take keys of 32 bytes");
        Self::AwsLc(LessSafeKey::new(key))
    }

    fn ipsec_mb(avx512: Avx512, suite: Suite, key: &[u8; 32]) -> Self {
        Self::IpsecMb(match suite {
            Suite::ChaChaPoly => avx512.chacha20_poly1305(key),
            Suite::AesGcm => avx512.aes_256_gcm(key),
        })
    }
}

/// A tag that does not fit what it is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forged;

impl Key {
    /// Schedules a key.
    #[must_use]
    pub fn new(suite: Suite, key: &[u8; 32]) -> Self {
        let cipher = match ACCELERATOR.get() {
            Some(avx512) => Cipher::ipsec_mb(*avx512, suite, key),
            None => Cipher::aws_lc(suite, key),
        };
        Self { suite, cipher }
    }

    /// Seals all but the last 16 bytes of `buffer` in place and writes the tag there. A counter must
    /// never come twice.
    ///
    /// # Panics
    /// If `buffer` is shorter than a tag.
    pub fn seal(&self, counter: u64, authenticated: &[u8], buffer: &mut [u8]) {
        let nonce = self.suite.nonce(counter);
        match &self.cipher {
            Cipher::AwsLc(key) => {
                let (plain, room) = buffer.split_at_mut(buffer.len() - TAG_LEN);
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(authenticated), plain);
                room.copy_from_slice(tag.expect("no packet exceeds what a cipher takes").as_ref());
            }
            Cipher::IpsecMb(key) => key.seal(&nonce, authenticated, buffer),
        }
    }

    /// Opens `buffer` in place; what was sealed is then all but its last 16 bytes. If it is forged,
    /// its content is lost.
    pub fn open(&self, counter: u64, authenticated: &[u8], buffer: &mut [u8]) -> Result<(), Forged> {
        let nonce = self.suite.nonce(counter);
        let opened = match &self.cipher {
            Cipher::AwsLc(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::from(authenticated), buffer).is_ok()
            }
            Cipher::IpsecMb(key) => key.open(&nonce, authenticated, buffer),
        };
        opened.then_some(()).ok_or(Forged)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Key({:?}, …)", self.suite)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 8439 section 2.8.2 has a 96-bit nonce that starts with 07, which Noise never makes; so
    /// this is checked against another implementation, the crate that the cookies use.
    #[test]
    fn chacha_is_what_another_implementation_makes_of_it() {
        use chacha20poly1305::aead::{AeadInPlace, KeyInit};
        let mut ours = [b"sealed".as_slice(), &[0; TAG_LEN]].concat();
        Key::new(Suite::ChaChaPoly, &[7; 32]).seal(0x0102, b"ad", &mut ours);

        let mut nonce = [0; 12];
        nonce[4..6].copy_from_slice(&[2, 1]);
        let mut theirs = b"sealed".to_vec();
        let cipher = chacha20poly1305::ChaCha20Poly1305::new(&[7; 32].into());
        let tag = cipher.encrypt_in_place_detached(&nonce.into(), b"ad", &mut theirs).unwrap();
        assert_eq!(ours, [theirs.as_slice(), &tag].concat());
    }

    #[test]
    fn aes_counts_in_big_endian() {
        let mut ours = [0; TAG_LEN + 4];
        Key::new(Suite::AesGcm, &[7; 32]).seal(1, &[], &mut ours);
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap());
        let nonce = Nonce::assume_unique_for_key([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(key.open_in_place(nonce, Aad::empty(), &mut ours).unwrap(), [0; 4]);
    }

    /// The keys of all whose code this machine runs.
    fn keys(suite: Suite, key: &[u8; 32]) -> Vec<Key> {
        let accelerated = Avx512::detect().map(|avx512| Cipher::ipsec_mb(avx512, suite, key));
        if let Err(why) = accelerated {
            eprintln!("AVX-512 is not tested: {why}");
        }
        let ciphers = [Some(Cipher::aws_lc(suite, key)), accelerated.ok()];
        ciphers.into_iter().flatten().map(|cipher| Key { suite, cipher }).collect()
    }

    #[test]
    fn all_make_the_same_of_a_packet_of_any_length() {
        for suite in Suite::ALL {
            let keys = keys(suite, &[3; 32]);
            for len in 0..2048 {
                let plain: Vec<_> = (0..len + TAG_LEN).map(|at| at.to_le_bytes()[0]).collect();
                let sealed: Vec<_> = keys
                    .iter()
                    .map(|key| {
                        let mut buffer = plain.clone();
                        key.seal(len as u64, &plain[..len.min(40)], &mut buffer);
                        buffer
                    })
                    .collect();
                for (key, other) in keys.iter().zip(sealed.iter().rev()) {
                    assert_eq!(other, &sealed[0], "{suite:?}, {len} bytes");
                    let mut buffer = other.clone();
                    assert_eq!(key.open(len as u64, &plain[..len.min(40)], &mut buffer), Ok(()));
                    assert_eq!(buffer[..len], plain[..len]);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_changed_bit_is_noticed(plain: Vec<u8>, counter: u64, at: prop::sample::Index, bit in 0..8_u8) {
            for key in Suite::ALL.into_iter().flat_map(|suite| keys(suite, &[3; 32])) {
                let mut buffer = [plain.as_slice(), &[0; TAG_LEN]].concat();
                key.seal(counter, b"ad", &mut buffer);
                let sealed = buffer.clone();
                prop_assert_eq!(key.open(counter, b"ad", &mut buffer), Ok(()));
                prop_assert_eq!(&buffer[..plain.len()], &plain);

                let mut changed = sealed.clone();
                changed[at.index(sealed.len())] ^= 1 << bit;
                prop_assert_eq!(key.open(counter, b"ad", &mut changed), Err(Forged));
                prop_assert_eq!(key.open(counter ^ 1, b"ad", &mut sealed.clone()), Err(Forged));
                prop_assert_eq!(key.open(counter, b"da", &mut sealed.clone()), Err(Forged));
            }
        }
    }
}
