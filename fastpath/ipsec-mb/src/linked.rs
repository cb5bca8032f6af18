//! What there is with the library.
#![allow(unsafe_code)] // It is C.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::ptr::NonNull;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::{Nonce, TAG_LEN};

/// A processor that has AVX-512 with VAES, VPCLMULQDQ, GFNI and IFMA, as from Ice Lake and Zen 4 on: with less,
/// this library is no faster than others.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// Asks the processor.
    ///
    /// # Errors
    /// What it lacks.
    pub fn detect() -> Result<Self, &'static str> {
        // SAFETY: it takes nothing.
        let has = unsafe { ffi::overmesh_mb_has_avx512() } != 0;
        has.then_some(Self(())).ok_or("no AVX-512 with VAES, VPCLMULQDQ, GFNI and IFMA")
    }

    /// Schedules a key of AES-256-GCM (NIST SP 800-38D).
    ///
    /// # Panics
    /// Without memory.
    #[must_use]
    pub fn aes_256_gcm(self, key: &[u8; 32]) -> Key {
        Key(Cipher::Aes256Gcm(Schedule::new(key)))
    }

    /// Takes a key of `ChaCha20`-Poly1305 (RFC 8439).
    #[must_use]
    pub fn chacha20_poly1305(self, key: &[u8; 32]) -> Key {
        Key(Cipher::ChaCha20Poly1305(Zeroizing::new(*key)))
    }
}

/// A key of one of the ciphers, wiped when it is dropped.
pub struct Key(Cipher);

enum Cipher {
    Aes256Gcm(Schedule),
    ChaCha20Poly1305(Zeroizing<[u8; 32]>),
}

impl Key {
    /// Seals all but the last 16 bytes of `buffer` and writes the tag there.
    ///
    /// # Panics
    /// If `buffer` is shorter than a tag.
    pub fn seal(&self, nonce: &Nonce, authenticated: &[u8], buffer: &mut [u8]) {
        let (text, tag) = buffer.split_last_chunk_mut().expect("a buffer has room for a tag");
        self.run(true, nonce, authenticated, text, tag);
    }

    /// Opens all but the last 16 bytes of `buffer`, which are the tag, and tells whether it fits. If not,
    /// the text is worth nothing.
    #[must_use]
    pub fn open(&self, nonce: &Nonce, authenticated: &[u8], buffer: &mut [u8]) -> bool {
        let Some((text, given)) = buffer.split_last_chunk_mut::<TAG_LEN>() else { return false };
        let mut tag = [0; TAG_LEN];
        self.run(false, nonce, authenticated, text, &mut tag);
        given.ct_eq(&tag).into()
    }

    /// Encrypts or decrypts `text`; `tag` becomes that of the ciphertext.
    fn run(&self, seal: bool, nonce: &Nonce, authenticated: &[u8], text: &mut [u8], tag: &mut [u8; TAG_LEN]) {
        let (aes, key) = match &self.0 {
            Cipher::Aes256Gcm(schedule) => (true, schedule.0.as_ptr().cast_const()),
            Cipher::ChaCha20Poly1305(key) => (false, key.as_ptr().cast()),
        };
        // SAFETY: the manager is this thread's, the key this cipher's; the other pointers are to what is
        // borrowed here, with its lengths, and none is kept.
        with_manager(|manager| unsafe {
            ffi::overmesh_mb_run(
                manager,
                aes.into(),
                key,
                seal.into(),
                nonce.as_ptr(),
                authenticated.as_ptr(),
                authenticated.len(),
                text.as_mut_ptr(),
                text.len(),
                tag.as_mut_ptr(),
            );
        });
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key(…)")
    }
}

/// What the library makes of an AES key.
struct Schedule(NonNull<c_void>);

// SAFETY: after `new` nobody writes to it, and it is not bound to the thread that made it.
unsafe impl Send for Schedule {}
// SAFETY: as above.
unsafe impl Sync for Schedule {}

impl Schedule {
    fn new(key: &[u8; 32]) -> Self {
        // SAFETY: the manager is this thread's, the key as long as the shim expects.
        let schedule = with_manager(|manager| unsafe { ffi::overmesh_mb_gcm_key(manager, key.as_ptr()) });
        Self(NonNull::new(schedule).expect("memory for a key"))
    }
}

impl Drop for Schedule {
    fn drop(&mut self) {
        // SAFETY: it came from `overmesh_mb_gcm_key` and is dropped once.
        unsafe { ffi::overmesh_mb_gcm_drop(self.0.as_ptr()) };
    }
}

/// The library's state of one thread.
struct Manager(NonNull<ffi::Manager>);

impl Drop for Manager {
    fn drop(&mut self) {
        // SAFETY: it came from `overmesh_mb_manager` and is dropped once.
        unsafe { ffi::free_mb_mgr(self.0.as_ptr()) };
    }
}

fn with_manager<T>(work: impl FnOnce(*mut ffi::Manager) -> T) -> T {
    thread_local! {
        // SAFETY: it takes nothing.
        static MANAGER: Manager = Manager(
            NonNull::new(unsafe { ffi::overmesh_mb_manager() }).expect("memory for the ciphers of a thread"),
        );
    }
    MANAGER.with(|manager| work(manager.0.as_ptr()))
}

mod ffi {
    use super::{c_int, c_void};

    /// `IMB_MGR`.
    #[repr(C)]
    pub struct Manager([u8; 0]);

    // src/shim.c, and of intel-ipsec-mb.h what needs none.
    unsafe extern "C" {
        pub fn overmesh_mb_has_avx512() -> c_int;
        pub fn overmesh_mb_manager() -> *mut Manager;
        pub fn overmesh_mb_gcm_key(manager: *mut Manager, key: *const u8) -> *mut c_void;
        pub fn overmesh_mb_gcm_drop(schedule: *mut c_void);
        pub fn overmesh_mb_run(
            manager: *mut Manager,
            aes: c_int,
            key: *const c_void,
            seal: c_int,
            nonce: *const u8,
            authenticated: *const u8,
            authenticated_len: usize,
            text: *mut u8,
            len: usize,
            tag: *mut u8,
        );
        pub fn free_mb_mgr(manager: *mut Manager);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library has both ciphers for lesser processors too: then those are tested.
    const CODE: Avx512 = Avx512(());

    /// The text of RFC 8439, section 2.8.2.
    const TEXT: &[u8] =
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the \
        future, sunscreen would be it.";

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        assert_eq!(hex.len(), 2 * N);
        std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
    }

    #[test]
    fn rfc_8439_section_2_8_2() {
        let key = CODE.chacha20_poly1305(&std::array::from_fn(|at| 0x80 + u8::try_from(at).unwrap()));
        let (nonce, authenticated) =
            (bytes("070000004041424344454647"), bytes::<12>("50515253c0c1c2c3c4c5c6c7"));
        let mut buffer = [TEXT, &[0; TAG_LEN]].concat();
        key.seal(&nonce, &authenticated, &mut buffer);
        assert_eq!(buffer[..16], bytes::<16>("d31a8d34648e60db7b86afbc53ef7ec2"));
        assert_eq!(buffer[TEXT.len()..], bytes::<16>("1ae10b594f09e26a7e902ecbd0600691"));
        assert!(key.open(&nonce, &authenticated, &mut buffer));
        assert_eq!(&buffer[..TEXT.len()], TEXT);
    }

    /// Test case 16 of the specification of GCM that was submitted to NIST.
    #[test]
    fn galois_counter_mode_test_case_16() {
        let key =
            CODE.aes_256_gcm(&bytes("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"));
        let (nonce, authenticated) =
            (bytes("cafebabefacedbaddecaf888"), bytes::<20>("feedfacedeadbeeffeedfacedeadbeefabaddad2"));
        let text = bytes::<60>(concat!(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72",
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
        ));
        let mut buffer = [text.as_slice(), &[0; TAG_LEN]].concat();
        key.seal(&nonce, &authenticated, &mut buffer);
        assert_eq!(buffer[..16], bytes::<16>("522dc1f099567d07f47f37a32a84427d"));
        assert_eq!(buffer[text.len()..], bytes::<16>("76fc6ece0f4e1768cddf8853bb2d551b"));
        assert!(key.open(&nonce, &authenticated, &mut buffer));
        assert_eq!(buffer[..text.len()], text);
    }

    #[test]
    fn what_is_forged_or_too_short_is_refused() {
        for key in [CODE.aes_256_gcm(&[7; 32]), CODE.chacha20_poly1305(&[7; 32])] {
            let mut sealed = [TEXT, &[0; TAG_LEN]].concat();
            key.seal(&[1; 12], b"ad", &mut sealed);
            for at in 0..sealed.len() {
                let mut forged = sealed.clone();
                forged[at] ^= 1;
                assert!(!key.open(&[1; 12], b"ad", &mut forged), "byte {at}");
            }
            assert!(!key.open(&[2; 12], b"ad", &mut sealed.clone()));
            assert!(!key.open(&[1; 12], b"da", &mut sealed.clone()));
            assert!(!key.open(&[1; 12], b"ad", &mut sealed[..TAG_LEN - 1].to_vec()));
            assert!(key.open(&[1; 12], b"ad", &mut sealed));
        }
    }

    #[test]
    fn nobody_sees_a_key_in_a_log() {
        let key = CODE.chacha20_poly1305(&[7; 32]);
        assert_eq!(format!("{key:?}"), "Key(…)");
    }

    #[test]
    fn one_key_serves_several_threads() {
        for key in [CODE.aes_256_gcm(&[7; 32]), CODE.chacha20_poly1305(&[7; 32])] {
            let seal = || {
                let mut buffer = [TEXT, &[0; TAG_LEN]].concat();
                key.seal(&[1; 12], b"", &mut buffer);
                buffer
            };
            let here = seal();
            std::thread::scope(|scope| {
                let there = [(); 4].map(|()| scope.spawn(|| (0..1000).all(|_| seal() == here)));
                assert!(there.into_iter().all(|thread| thread.join().unwrap()));
            });
        }
    }
}
