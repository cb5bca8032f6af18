//! The digest of a table (README.md, "Table digest"): what two tables that forward alike have in common.
//!
//! Peers go into it by an exclusive or of their hashes, so that their order does not matter, and that a change
//! costs as much as what changes. It tells tables apart that were meant to be alike, and is no defence
//! against forgery.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::Peer;
use crate::noise::{PeerKeys, PublicKey, Suite};

/// Of any number of peers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum([u8; 32]);

impl Sum {
    /// Adds a peer, or takes it out again.
    pub(super) fn turn(&mut self, peer: &Peer) {
        let hash = Sha256::digest(canonical(peer));
        self.0.iter_mut().zip(hash).for_each(|(byte, other)| *byte ^= other);
    }
}

/// SHA-256 of a table: its number and MTU, what this host is known by, its peers.
pub(super) fn digest(network_number: u32, mtu: u32, own: &[PublicKey], peers: &Sum) -> [u8; 32] {
    Sha256::digest(canonical_table(network_number, mtu, own, peers)).into()
}

fn canonical_table(network_number: u32, mtu: u32, own: &[PublicKey], peers: &Sum) -> String {
    let keys = own.iter().fold(String::new(), |lines, key| lines + "key " + &hex(key.bytes()) + "\n");
    format!("overmesh table v2\nnetwork {network_number} mtu {mtu}\n{keys}peers {}\n", hex(&peers.0))
}

fn canonical(peer: &Peer) -> String {
    let mut text = String::with_capacity(512);
    write_peer(&mut text, peer).expect("writing to a String cannot fail");
    text
}

fn write_peer(text: &mut String, peer: &Peer) -> std::fmt::Result {
    writeln!(text, "peer {}\nname {}", peer.id, peer.name)?;
    match &peer.keys {
        None => writeln!(text, "mode plain")?,
        Some(keys) => write_keys(text, keys)?,
    }
    if peer.stock {
        writeln!(text, "stock")?;
    }
    for prefix in &peer.prefixes {
        writeln!(text, "prefix {prefix}")?;
    }
    for endpoint in &peer.endpoints {
        writeln!(text, "endpoint {endpoint}")?;
    }
    if peer.lanes > 1 {
        writeln!(text, "lanes {}", peer.lanes)?;
    }
    Ok(())
}

fn write_keys(text: &mut String, keys: &PeerKeys) -> std::fmt::Result {
    let suite = match keys.suite {
        Suite::ChaChaPoly => "chacha",
        Suite::AesGcm => "aes",
    };
    let keepalive = keys.keepalive.map_or(0, |keepalive| keepalive.as_secs());
    writeln!(text, "mode sealed\nsuite {suite}\nkeepalive {keepalive}")?;
    writeln!(text, "public_key {}", hex(keys.public_key.bytes()))?;
    if let Some(previous) = &keys.previous {
        writeln!(text, "previous_public_key {}", hex(previous.bytes()))?;
    }
    writeln!(text, "preshared_key {}", hex(&Sha256::digest(keys.preshared_key.bytes())))
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::PeerSpec;

    fn peer() -> PeerSpec {
        PeerSpec {
            id: "b".into(),
            name: "two".into(),
            prefixes: vec!["fd00::2/128".into(), "10.77.0.2/32".into()],
            endpoints: vec!["192.0.2.2:6081".into()],
            ..PeerSpec::default()
        }
    }

    fn text(spec: &PeerSpec) -> String {
        canonical(&Peer::parse(spec).unwrap())
    }

    #[test]
    fn the_canonical_form_is_as_documented() {
        let one_lane = "peer b\nname two\nmode plain\nprefix 10.77.0.2/32\nprefix fd00::2/128\n\
                        endpoint 192.0.2.2:6081\n";
        assert_eq!(text(&peer()), one_lane);
        assert_eq!(text(&PeerSpec { lanes: 2, ..peer() }), format!("{one_lane}lanes 2\n"));
        let (keys, zeros) = ([[0xa5; 32].into()], "0".repeat(64));
        assert_eq!(
            canonical_table(42, 1420, &keys, &Sum::default()),
            format!("overmesh table v2\nnetwork 42 mtu 1420\nkey {}\npeers {zeros}\n", "a5".repeat(32))
        );
    }

    #[test]
    fn it_shows_no_secret() {
        let mut keys = PeerKeys::new([9; 32].into());
        keys.preshared_key = [0x5a; 32].into();
        let text = text(&PeerSpec { keys: Some(keys), ..peer() });
        assert!(text.contains("\nmode sealed\nsuite chacha\nkeepalive 0\npublic_key 0909"), "{text}");
        assert!(text.contains("\npreshared_key ") && !text.contains(&"5a".repeat(32)), "{text}");
    }

    #[test]
    fn a_peer_that_is_taken_out_leaves_nothing() {
        let mut sum = Sum::default();
        sum.turn(&Peer::parse(&peer()).unwrap());
        assert_ne!(sum.0, [0; 32]);
        sum.turn(&Peer::parse(&peer()).unwrap());
        assert_eq!(sum.0, [0; 32]);
    }
}
