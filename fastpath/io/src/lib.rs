//! Where packets come from and go to: TUN devices and UDP sockets, and what stands in for them.
//!
//! [`device`] says what a device is. [`tun`] and [`udp`] are the real ones, [`loopback`] a pair in
//! memory; [`fault`] and [`pcap`] wrap any of them. [`offloads`] keeps what kernel and processor
//! do for them. All `unsafe` code of the fastpath is here and in `overmesh-ipsec-mb`.

pub mod device;
pub mod fault;
pub mod loopback;
mod messages;
pub mod offloads;
pub mod pcap;
pub mod poll;
pub mod tun;
pub mod udp;
