//! Longest-prefix match: which peer has an address.
//!
//! One hash table per prefix length in use, longest first. An overlay has few lengths (host
//! addresses, a subnet or two), so a lookup is a few probes however many peers there are.

use std::collections::HashMap;
use std::net::IpAddr;

use foldhash::fast::FixedState;
use ipnet::IpNet;

/// Routes from prefixes to `T`.
#[derive(Debug)]
pub struct Routes<T> {
    v4: Vec<SameLength<u32, T>>,
    v6: Vec<SameLength<u128, T>>,
}

/// All routes of one prefix length.
#[derive(Debug)]
struct SameLength<A, T> {
    mask: A,
    routes: HashMap<A, T, FixedState>,
}

impl<T: Copy> Routes<T> {
    /// Builds the routes. Of two equal prefixes the later wins; callers who mind check before.
    pub fn new(prefixes: impl IntoIterator<Item = (IpNet, T)>) -> Self {
        let mut v4 = Vec::new();
        let mut v6 = Vec::new();
        for (prefix, value) in prefixes {
            match prefix {
                IpNet::V4(net) => insert(&mut v4, net.netmask().into(), net.network().into(), value),
                IpNet::V6(net) => insert(&mut v6, net.netmask().into(), net.network().into(), value),
            }
        }
        v4.sort_unstable_by_key(|same: &SameLength<u32, T>| std::cmp::Reverse(same.mask));
        v6.sort_unstable_by_key(|same: &SameLength<u128, T>| std::cmp::Reverse(same.mask));
        Self { v4, v6 }
    }

    /// The value of the longest prefix that contains `address`.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<T> {
        match address {
            IpAddr::V4(address) => longest(&self.v4, address.into()),
            IpAddr::V6(address) => longest(&self.v6, address.into()),
        }
    }
}

fn insert<A, T>(lengths: &mut Vec<SameLength<A, T>>, mask: A, network: A, value: T)
where
    A: Copy + Eq + std::hash::Hash,
{
    let at = lengths.iter().position(|same| same.mask == mask).unwrap_or_else(|| {
        lengths.push(SameLength { mask, routes: HashMap::default() });
        lengths.len() - 1
    });
    lengths[at].routes.insert(network, value);
}

fn longest<A, T: Copy>(lengths: &[SameLength<A, T>], address: A) -> Option<T>
where
    A: Copy + Eq + std::hash::Hash + std::ops::BitAnd<Output = A>,
{
    lengths.iter().find_map(|same| same.routes.get(&(address & same.mask)).copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    /// The definition itself: of all prefixes that contain the address, the longest.
    fn naive(prefixes: &[(IpNet, usize)], address: IpAddr) -> Option<usize> {
        let containing = prefixes.iter().filter(|(prefix, _)| prefix.contains(&address));
        containing.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, value)| *value)
    }

    /// Few distinct bits, so that prefixes nest and addresses hit them.
    fn address() -> impl Strategy<Value = IpAddr> {
        let v4 = any::<u32>().prop_map(|bits| IpAddr::V4((bits & 0xc000_0303).into()));
        let v6 = any::<u128>().prop_map(|bits| IpAddr::V6((bits & (0b11 << 126 | 0b11)).into()));
        prop_oneof![v4, v6]
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        (address(), 0..=128_u8).prop_map(|(address, length)| match address {
            IpAddr::V4(v4) => Ipv4Net::new_assert(v4, length % 33).trunc().into(),
            IpAddr::V6(v6) => Ipv6Net::new_assert(v6, length).trunc().into(),
        })
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_model(
            prefixes in prop::collection::hash_set(prefix(), 0..40),
            addresses in prop::collection::vec(address(), 1..40),
        ) {
            let prefixes: Vec<_> = prefixes.into_iter().zip(0_usize..).collect();
            let routes = Routes::new(prefixes.clone());
            for address in addresses {
                prop_assert_eq!(routes.lookup(address), naive(&prefixes, address));
            }
        }
    }
}
