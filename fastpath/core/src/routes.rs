//! Longest-prefix match: which peer has an address.
//!
//! One hash table per prefix length in use, longest first. An overlay has few lengths (host
//! addresses, a subnet or two), so a lookup is a few probes however many peers there are.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::ops::BitAnd;

use foldhash::fast::FixedState;
use ipnet::IpNet;

/// Routes from prefixes to `T`.
#[derive(Debug, Clone)]
pub struct Routes<T> {
    v4: Lengths<u32, T>,
    v6: Lengths<u128, T>,
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Self { v4: Lengths(vec![]), v6: Lengths(vec![]) }
    }
}

impl<T: Copy> Routes<T> {
    /// Builds the routes. Of two equal prefixes the later wins.
    pub fn new(prefixes: impl IntoIterator<Item = (IpNet, T)>) -> Self {
        let mut routes = Self::default();
        for (prefix, value) in prefixes {
            routes.insert(prefix, value);
        }
        routes
    }

    /// Sets the value of a prefix; returns the one it had.
    pub fn insert(&mut self, prefix: IpNet, value: T) -> Option<T> {
        match prefix {
            IpNet::V4(net) => self.v4.insert(net.netmask().into(), net.network().into(), value),
            IpNet::V6(net) => self.v6.insert(net.netmask().into(), net.network().into(), value),
        }
    }

    /// Takes a prefix out; returns its value.
    pub fn remove(&mut self, prefix: IpNet) -> Option<T> {
        match prefix {
            IpNet::V4(net) => self.v4.remove(net.netmask().into(), net.network().into()),
            IpNet::V6(net) => self.v6.remove(net.netmask().into(), net.network().into()),
        }
    }

    /// The value of the longest prefix that contains `address`.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<T> {
        match address {
            IpAddr::V4(address) => self.v4.longest(address.into()),
            IpAddr::V6(address) => self.v6.longest(address.into()),
        }
    }
}

/// Routes of one IP version, the longest prefixes first.
#[derive(Debug, Clone)]
struct Lengths<A, T>(Vec<SameLength<A, T>>);

/// All routes of one prefix length.
#[derive(Debug, Clone)]
struct SameLength<A, T> {
    mask: A,
    routes: HashMap<A, T, FixedState>,
}

impl<A: Copy + Ord + Hash + BitAnd<Output = A>, T: Copy> Lengths<A, T> {
    fn insert(&mut self, mask: A, network: A, value: T) -> Option<T> {
        let at = self.position(mask).unwrap_or_else(|at| {
            self.0.insert(at, SameLength { mask, routes: HashMap::default() });
            at
        });
        self.0[at].routes.insert(network, value)
    }

    fn remove(&mut self, mask: A, network: A) -> Option<T> {
        let at = self.position(mask).ok()?;
        let value = self.0[at].routes.remove(&network);
        if self.0[at].routes.is_empty() {
            self.0.remove(at);
        }
        value
    }

    /// Where the prefixes of a length are, or belong.
    fn position(&self, mask: A) -> Result<usize, usize> {
        self.0.binary_search_by_key(&Reverse(mask), |same| Reverse(same.mask))
    }

    fn longest(&self, address: A) -> Option<T> {
        self.0.iter().find_map(|same| same.routes.get(&(address & same.mask)).copied())
    }
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
