//! What there is without the library: the same, of which nothing can be had.

use crate::Nonce;

/// See `linked.rs`.
#[derive(Debug, Clone, Copy)]
pub enum Avx512 {}

impl Avx512 {
    /// See `linked.rs`.
    ///
    /// # Errors
    /// Always.
    pub fn detect() -> Result<Self, &'static str> {
        Err("this build has no ipsec-mb, which is for x86-64")
    }

    /// See `linked.rs`.
    #[must_use]
    pub fn aes_256_gcm(self, _: &[u8; 32]) -> Key {
        match self {}
    }

    /// See `linked.rs`.
    #[must_use]
    pub fn chacha20_poly1305(self, _: &[u8; 32]) -> Key {
        match self {}
    }
}

/// See `linked.rs`.
#[derive(Debug)]
pub enum Key {}

impl Key {
    /// See `linked.rs`.
    pub fn seal(&self, _: &Nonce, _: &[u8], _: &mut [u8]) {
        match *self {}
    }

    /// See `linked.rs`.
    #[must_use]
    pub fn open(&self, _: &Nonce, _: &[u8], _: &mut [u8]) -> bool {
        match *self {}
    }
}
