//! AES-256-GCM and `ChaCha20`-Poly1305 by Intel's ipsec-mb, which has both for AVX-512.
//!
//! Both in place: the buffer is the text and 16 bytes for its tag. A manager, the library's state, is of one
//! thread; each thread makes its own with the first packet.

/// The bytes of a tag.
pub const TAG_LEN: usize = 16;
/// A nonce of 96 bits.
pub type Nonce = [u8; 12];

#[cfg(all(feature = "link", target_arch = "x86_64"))]
mod linked;
#[cfg(all(feature = "link", target_arch = "x86_64"))]
pub use linked::{Avx512, Key};

#[cfg(not(all(feature = "link", target_arch = "x86_64")))]
mod absent;
#[cfg(not(all(feature = "link", target_arch = "x86_64")))]
pub use absent::{Avx512, Key};
