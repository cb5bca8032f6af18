//! The Internet checksum, RFC 1071.

/// A one's complement sum under way, of 16-bit words in memory order: section 2(B) shows that the
/// byte order does not matter as long as it is the same on the way in and out.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

/// Independent sums, which the compiler turns into vector instructions.
#[derive(Clone, Copy, Default)]
struct Lanes([u64; 16]);

impl Lanes {
    fn add(&mut self, block: &[u8; 64]) {
        for (lane, word) in self.0.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
}

impl Sum {
    /// Adds bytes from an even place of the packet on. Takes up to 2^32 words.
    pub(crate) fn add(self, bytes: &[u8]) -> Self {
        let (blocks, rest) = bytes.as_chunks();
        // Most are headers: to sum up lanes that nothing was added to takes longer than the header.
        if blocks.is_empty() {
            return self.add_rest(rest);
        }
        let mut lanes = Lanes::default();
        for block in blocks {
            lanes.add(block);
        }
        self.add_lanes(lanes).add_rest(rest)
    }

    /// The same while they are copied: to read them where they have just been written is to wait for that.
    ///
    /// # Panics
    /// If the lengths differ.
    pub(crate) fn add_copied(self, from: &[u8], to: &mut [u8]) -> Self {
        assert_eq!(from.len(), to.len(), "the copy is as long");
        let ((blocks, rest), (copies, copied_rest)) = (from.as_chunks(), to.as_chunks_mut());
        let mut lanes = Lanes::default();
        for (block, copy) in blocks.iter().zip(copies) {
            *copy = *block;
            lanes.add(block);
        }
        copied_rest.copy_from_slice(rest);
        self.add_lanes(lanes).add_rest(rest)
    }

    fn add_lanes(self, lanes: Lanes) -> Self {
        Self(self.0 + lanes.0.iter().sum::<u64>())
    }

    fn add_rest(self, rest: &[u8]) -> Self {
        let (words, rest) = rest.as_chunks();
        let sum = words.iter().fold(self, |sum, word| sum.add_word(*word));
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum.add_word(last)
    }

    fn add_word(self, word: [u8; 4]) -> Self {
        Self(self.0 + u64::from(u32::from_ne_bytes(word)))
    }

    /// Adds the pseudo-header of TCP and UDP: addresses, protocol, length (RFC 9293 section 3.1,
    /// RFC 8200 section 8.1).
    pub(crate) fn add_pseudo(self, addresses: &[u8], protocol: u8, length: usize) -> Self {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.add_rest(addresses).add_word([0, protocol, 0, 0]).add_word(length.to_be_bytes())
    }

    /// The sum in 16 bits, as it goes into a packet that leaves the rest to someone else.
    #[allow(clippy::cast_possible_truncation, reason = "folded until it fits")]
    pub(crate) fn fold(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        (sum as u16).to_ne_bytes()
    }

    /// The checksum: the complement of the sum.
    pub(crate) fn complement(self) -> [u8; 2] {
        self.fold().map(|byte| !byte)
    }

    /// Whether the bytes added, a checksum among them, are what they were when it was made.
    pub(crate) fn is_intact(self) -> bool {
        self.fold() == [0xff; 2]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Word by word, as RFC 1071 section 1 tells it.
    pub(crate) fn naive(bytes: &[u8]) -> u16 {
        bytes.chunks(2).fold(0, |sum, word| {
            let word = u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]);
            let (sum, carry) = word.overflowing_add(sum);
            sum + u16::from(carry)
        })
    }

    #[test]
    fn the_example_of_the_rfc() {
        let sum = Sum::default().add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_naive_way(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let mut copy = vec![0; bytes.len()];
            prop_assert_eq!(Sum::default().add(&bytes).fold(), naive(&bytes).to_be_bytes());
            prop_assert_eq!(Sum::default().add_copied(&bytes, &mut copy).fold(), naive(&bytes).to_be_bytes());
            prop_assert_eq!(copy, bytes);
        }

        #[test]
        fn a_checksum_makes_it_intact(bytes in prop::collection::vec(any::<u8>(), 1..100)) {
            let even = &bytes[..bytes.len() & !1];
            let checksum = Sum::default().add(even).complement();
            prop_assert!(Sum::default().add(even).add(&checksum).is_intact());
        }
    }
}
