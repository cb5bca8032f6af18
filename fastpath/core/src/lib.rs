//! What Overmesh does with a packet, without sockets and without a clock.
//!
//! [`tunnel`] is the way in: both directions of a packet, on one screen each. It asks the peer
//! table ([`peers`], [`routes`]), reads and writes headers ([`wire`]), and ends in a verdict or in
//! a drop that has a name ([`drops`]) and is counted ([`counters`]). [`offload`] cuts and merges
//! the super-packets that hosts prefer to handle; [`pmtu`] finds out how large a packet may be.
#![forbid(unsafe_code)]

pub mod counters;
pub mod drops;
#[cfg(feature = "testing")]
pub mod fuzz;
pub mod noise;
pub mod offload;
pub mod peers;
pub mod pmtu;
pub mod routes;
pub mod tunnel;
pub mod wire;
