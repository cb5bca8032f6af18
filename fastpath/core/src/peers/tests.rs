use super::*;
use crate::noise::{HostKeys, PrivateKey, PublicKey};

/// A peer with nothing but its id.
pub(crate) fn peer(id: &str) -> PeerSpec {
    PeerSpec { id: id.into(), ..PeerSpec::default() }
}

pub(crate) fn table(specs: &[PeerSpec]) -> Table {
    Table::new(42, 1420, None, specs).unwrap()
}

fn refused(specs: &[PeerSpec]) -> String {
    Table::new(42, 1420, None, specs).unwrap_err().to_string()
}

fn with(id: &str, prefixes: &[&str], endpoints: &[&str]) -> PeerSpec {
    let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
    PeerSpec { prefixes: owned(prefixes), endpoints: owned(endpoints), ..peer(id) }
}

#[test]
fn refusals_name_cause_and_fix() {
    assert_eq!(refused(&[peer("a"), peer("a")]), "peer a is there twice. list every peer id once");
    assert_eq!(
        refused(&[with("a", &["10.0.0.1/24"], &[])]),
        "peer a: prefix 10.0.0.1/24 has bits set beyond its length. write 10.0.0.0/24"
    );
    assert_eq!(
        refused(&[with("a", &["10.0.0.0/8"], &[]), with("b", &["10.0.0.0/8"], &[])]),
        "prefix 10.0.0.0/8 is both peer a's and peer b's. give it to one of them"
    );
    assert!(refused(&[with("a", &["10.0.0.1"], &[])]).contains("is not CIDR"));
    assert!(refused(&[with("a", &[], &["192.0.2.1"])]).contains("is not an address and port"));
    assert!(refused(&[with("a", &[], &["192.0.2.1:0"])]).contains("is not an address and port"));
    assert!(refused(&[peer("")]).contains("is empty"));
    assert!(refused(&[peer("a\nb")]).contains("control characters"));
}

#[test]
fn network_number_and_mtu_are_bounded() {
    let refused = |number, mtu| Table::new(number, mtu, None, &[]).unwrap_err();
    assert_eq!(refused(0, 1420), TableError::BadNetworkNumber(0));
    assert_eq!(refused(1 << 24, 1420), TableError::BadNetworkNumber(1 << 24));
    assert_eq!(refused(1, 575), TableError::BadMtu(575));
    assert_eq!(refused(1, 65_500), TableError::BadMtu(65_500));
}

fn sealed(keys: &[Option<u8>]) -> Result<Table, TableError> {
    let ids = ["a", "b", "c"];
    let peer = |(id, key): (&&str, &Option<u8>)| PeerSpec {
        keys: key.map(|key| PeerKeys::new(PrivateKey::from([key; 32]).public())),
        ..peer(id)
    };
    let specs: Vec<_> = ids.iter().zip(keys).map(peer).collect();
    Table::new(42, 1420, Some(host_keys(1)), &specs)
}

fn host_keys(own: u8) -> HostKeys {
    PrivateKey::from([own; 32]).into()
}

#[test]
fn in_a_sealed_network_everyone_has_a_key_of_their_own() {
    assert_eq!(sealed(&[Some(2), Some(3)]).unwrap().keys(0).count(), 2);
    assert_eq!(sealed(&[Some(2), None]).unwrap_err(), TableError::NoKey("b".into()));
    assert_eq!(sealed(&[Some(1)]).unwrap_err(), TableError::OwnKey("a".into()));
    let shared = TableError::SharedKey { first: "a".into(), second: "c".into() };
    assert_eq!(sealed(&[Some(2), Some(3), Some(2)]).unwrap_err(), shared);
    let keyed = PeerSpec { keys: Some(PeerKeys::new([2; 32].into())), ..peer("a") };
    assert!(refused(&[keyed]).contains("the network is plain"));
}

#[test]
fn the_digest_tells_keys_apart() {
    let table = |psk: u8, own: u8| {
        let mut keys = PeerKeys::new([9; 32].into());
        keys.preshared_key = [psk; 32].into();
        let spec = PeerSpec { keys: Some(keys), ..peer("a") };
        Table::new(42, 1420, Some(host_keys(own)), &[spec]).unwrap()
    };
    assert_ne!(table(1, 1).digest(), table(2, 1).digest());
    assert_ne!(table(1, 1).digest(), table(1, 2).digest());
}

#[test]
fn a_host_or_peer_that_changes_its_key_has_two() {
    let public = |seed: u8| PrivateKey::from([seed; 32]).public();
    let table = |own: HostKeys, previous: Option<PublicKey>| {
        let spec = PeerSpec { keys: Some(PeerKeys { previous, ..PeerKeys::new(public(9)) }), ..peer("a") };
        Table::new(42, 1420, Some(own), &[spec])
    };
    let both = HostKeys { own: [1; 32].into(), other: Some([2; 32].into()) };
    let turned = HostKeys { own: [2; 32].into(), other: Some([1; 32].into()) };
    let digest = |own: &HostKeys, previous| table(own.clone(), previous).unwrap().digest();
    assert_ne!(digest(&both, None), digest(&host_keys(1), None));
    assert_ne!(digest(&both, None), digest(&turned, None));
    assert_ne!(digest(&both, Some(public(8))), digest(&both, None));
    assert_eq!(table(both, Some(public(2))).unwrap_err(), TableError::OwnKey("a".into()));
    let twice = TableError::SharedKey { first: "a".into(), second: "a".into() };
    assert_eq!(table(host_keys(1), Some(public(9))).unwrap_err(), twice);
}

#[test]
fn one_peer_may_nest_in_another() {
    let table = table(&[with("wide", &["10.0.0.0/8"], &[]), with("host", &["10.0.0.1/32"], &[])]);
    let owner = |text: &str| table.owner_of(text.parse().unwrap()).map(|at| &*table.peer(at).id);
    assert_eq!(owner("10.0.0.1"), Some("host"));
    assert_eq!(owner("10.0.0.2"), Some("wide"));
    assert_eq!(owner("11.0.0.1"), None);
}

#[test]
fn an_underlay_address_may_be_shared_and_mapped() {
    let table = table(&[
        with("a", &[], &["192.0.2.1:6081", "192.0.2.1:7000"]),
        with("b", &[], &["[::ffff:192.0.2.1]:6081"]),
    ]);
    assert_eq!(table.at_underlay("192.0.2.1".parse().unwrap()), [PeerIndex(0), PeerIndex(1)]);
    assert!(table.at_underlay("192.0.2.2".parse().unwrap()).is_empty());
}

#[test]
fn the_digest_ignores_order_of_peers_but_not_of_endpoints() {
    let a = with("a", &["10.0.0.1/32", "fd00::1/128"], &["192.0.2.1:6081", "192.0.2.2:6081"]);
    let b = peer("b");
    let turned = with("a", &["fd00::1/128", "10.0.0.1/32"], &["192.0.2.2:6081", "192.0.2.1:6081"]);
    let digest = |specs: &[PeerSpec]| table(specs).digest();
    assert_eq!(digest(&[a.clone(), b.clone()]), digest(&[b.clone(), a.clone()]));
    assert_ne!(digest(std::slice::from_ref(&a)), digest(&[turned]));
    assert_ne!(digest(&[a]), digest(&[b]));
}

#[test]
fn a_lane_is_as_many_ports_above_and_meets_the_one_of_its_number() {
    let table = table(&[PeerSpec { lanes: 2, ..with("a", &[], &["192.0.2.1:65534"]) }, peer("b")]);
    let [a, b] = table.peers() else { unreachable!() };
    let port = |lane| a.endpoint(lane).map(|endpoint| endpoint.port());
    assert_eq!([0, 1, 2].map(port), [Some(65534), Some(65535), None]);
    assert_eq!([0, 1, 2, 3].map(|lane| a.lane_facing(lane)), [0, 1, 0, 1]);
    assert_eq!((b.lanes, b.lane_facing(3), b.endpoint(0)), (1, 0, None));
}

#[test]
fn lanes_are_bounded_by_queues_and_ports() {
    let lanes = |lanes| refused(&[PeerSpec { lanes, ..with("a", &[], &["192.0.2.1:65534"]) }]);
    assert_eq!(lanes(65), "peer a: 65 lanes are too many. give at most 64");
    assert_eq!(
        lanes(3),
        "peer a: 3 lanes from port 65534 on go beyond port 65535. give a lower port or fewer lanes"
    );
}

#[test]
fn a_lane_that_the_peer_lacks_does_not_speak_to_it() {
    let mut keys = PeerKeys::new([9; 32].into());
    keys.keepalive = Some(std::time::Duration::from_secs(25));
    let spec = PeerSpec { keys: Some(keys), ..with("a", &[], &["192.0.2.1:51820"]) };
    let table = Table::new(42, 1420, Some(host_keys(1)), &[spec]).unwrap();
    let of = |lane| table.keys(lane).map(|(keys, to)| (keys.keepalive.is_some(), to.is_some())).next();
    assert_eq!([of(0), of(1)], [Some((true, true)), Some((false, false))]);
}

#[test]
fn a_change_leaves_peers_that_stay_where_and_what_they_were() {
    let before = table(&[peer("a"), peer("b"), peer("c"), peer("d")]);
    let after = changed(&before, &[with("b", &["10.0.0.2/32"], &[]), peer("e")], &["a"]).unwrap();
    let ids: Vec<_> = after.peers().iter().map(|peer| &*peer.id).collect();
    assert_eq!(ids, ["d", "b", "c", "e"], "the last takes the place of the one that went");
    let c = before.index_of("c").unwrap();
    assert!(after.has(c, &before.peers()[c.0]));
    assert_eq!(after.owner_of("10.0.0.2".parse().unwrap()), after.index_of("b"));
    assert_eq!(before.owner_of("10.0.0.2".parse().unwrap()), None);
}

#[test]
fn what_a_change_contradicts_is_refused_by_name() {
    let before = table(&[with("a", &["10.0.0.1/32"], &[]), peer("b")]);
    let refused =
        |specs: &[PeerSpec], removed: &[&str]| changed(&before, specs, removed).unwrap_err().to_string();
    assert_eq!(
        refused(&[with("b", &["10.0.0.1/32"], &[])], &[]),
        "prefix 10.0.0.1/32 is both peer a's and peer b's. give it to one of them"
    );
    let handed_on = changed(&before, &[with("b", &["10.0.0.1/32"], &[]), peer("a")], &[]).unwrap();
    assert_eq!(handed_on.owner_of("10.0.0.1".parse().unwrap()), handed_on.index_of("b"));
    assert_eq!(refused(&[], &["c"]), "peer c is to go and is not there. apply the whole table");
    assert_eq!(refused(&[], &["a", "a"]), "peer a is to go and is not there. apply the whole table");
    assert_eq!(refused(&[peer("c"), peer("c")], &[]), "peer c is there twice. list every peer id once");
    assert_eq!(refused(&[peer("b"), peer("b")], &[]), "peer b is there twice. list every peer id once");
}

#[test]
fn who_stays_is_held_against_new_keys_of_this_host_too() {
    let before = sealed(&[Some(2), Some(3)]).unwrap();
    let under = |keys: Option<HostKeys>| before.changed(42, 1420, keys, &[], &[]);
    assert_eq!(under(Some(host_keys(3))).unwrap_err(), TableError::OwnKey("b".into()));
    assert_eq!(under(None).unwrap_err(), TableError::KeyInPlain("a".into()));
    assert_ne!(under(Some(host_keys(4))).unwrap().digest(), before.digest());
}

#[test]
fn who_comes_is_held_against_the_keys_that_this_host_has_anyway() {
    let before = sealed(&[Some(2)]).unwrap();
    let with = |key: Option<u8>| {
        let keys = key.map(|key| PeerKeys::new(PrivateKey::from([key; 32]).public()));
        before.changed(42, 1420, Some(host_keys(1)), &[PeerSpec { keys, ..peer("b") }], &[])
    };
    assert_eq!(with(Some(1)).unwrap_err(), TableError::OwnKey("b".into()));
    assert_eq!(with(None).unwrap_err(), TableError::NoKey("b".into()));
    assert!(with(Some(3)).is_ok());
}

fn changed(table: &Table, specs: &[PeerSpec], removed: &[&str]) -> Result<Table, TableError> {
    let removed: Vec<_> = removed.iter().map(ToString::to_string).collect();
    table.changed(42, 1420, None, specs, &removed)
}
