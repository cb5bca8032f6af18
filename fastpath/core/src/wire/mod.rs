//! Wire formats, one file a header. `new_checked` looks at the bytes once; the accessors after it
//! cannot fail. Every parser is total: any bytes in, a value or a named drop out, no panic.

pub mod control;
pub mod geneve;
pub mod icmp;
pub mod ip;
pub mod wireguard;

/// The field at `range`, `N` bytes long, of a buffer that was checked to hold it.
pub(crate) fn field<const N: usize>(bytes: &[u8], range: std::ops::Range<usize>) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[range]);
    field
}
