//! Test vectors of the Noise protocols that both suites are, from cacophony
//! (<https://github.com/haskell-cryptography/cacophony>), as `snow` ships them. Both have the same keys,
//! prologue and payloads.

use super::*;

const PROLOGUE: &str = "4a6f686e2047616c74";
const PSK: &str = "54686973206973206d7920417573747269616e20706572737065637469766521";
const INITIATOR: &str = "e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1";
const INITIATOR_EPHEMERAL: &str = "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a";
const RESPONDER: &str = "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893";
const RESPONDER_PUBLIC: &str = "31e0303fd6418d2f8c0e78b91f22e8caed0fbe48656dcf4767e4834f701b8f62";
const RESPONDER_EPHEMERAL: &str = "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b";

/// The two of the handshake, then by turns from the initiator and from the responder.
const PAYLOADS: [&[u8]; 6] = [
    b"Ludwig von Mises",
    b"Murray Rothbard",
    b"F. A. Hayek",
    b"Carl Menger",
    b"Jean-Baptiste Say",
    b"Eugen B\xf6hm von Bawerk",
];
const CHACHA: [&str; 6] = [
    "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944001e21de9f98ddd8e2ad57527207feb56253\
     c9c94a9e496782ecfcb2a75fbcaf1b52948cc48daefe660c62119ab5000980c84831215f2441eba616548e832985464cf17e\
     51ee93109008399a21f7e13f",
    "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843cb765f2caef0751b8f007572dab032221775\
     5c0632f365717edbf34d33e87a",
    "8153ca9833bc3c1b91a7e66e5f4d4f5b59bf9e64c2f20d15f0bba7",
    "07af0c9c86e1b4e80f36b04ff7688d51141af3debd0332f0a705ef",
    "6ab1467c0448cc78394494abaaf23afce0e234315d6e2624dcbfa8a21c1c4d073d",
    "dfc346c0d2296ae6cf1acf6f12b8456a1dba228cf8d8b774aacf1c47fc53aa80ebc7a4c292",
];
const AES: [&str; 6] = [
    "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944f70d65fedfd7ad294f4c8f5c1324c7c90e54\
     cd8af05652112a27b261e11ce99d9d517c4a1e0753038edb26066b4087b4c230aafa22b0552550b723eb69374a674d306a84\
     e1852e30af2e2dbefeb4fd2f",
    "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f1448088434190dae84b6887641a5f81e03d83f7be91fa\
     1134c18dde966e18fc404b97a8",
    "061b631b380a639a0801920ddf205e2dbf6606c3328683c6af50fc",
    "c4b5ecd181f80279f2cc41217d490ed56459e3e3fb5e758e522d0d",
    "43897c593df3b427776e11c3632bb935fd7e31e50a4069c8b559188a04af961e12",
    "b7f9229e7ba4b89161baca67cef00381ce7b613bdcb8dcf233573476f6164dde9a8b1b9200",
];

#[test]
fn the_vectors_of_both_suites() {
    for (suite, messages) in [(Suite::ChaChaPoly, CHACHA), (Suite::AesGcm, AES)] {
        let mut initiator = end(suite, INITIATOR, INITIATOR_EPHEMERAL, Some(RESPONDER_PUBLIC));
        let mut responder = end(suite, RESPONDER, RESPONDER_EPHEMERAL, None);
        carry(&mut initiator, &mut responder, PAYLOADS[0], messages[0]);
        carry(&mut responder, &mut initiator, PAYLOADS[1], messages[1]);

        assert_eq!(split(&mut initiator), split(&mut responder));
        let (initiator, responder) = split(&mut initiator);
        let keys = [initiator, responder].map(|key| Key::new(suite, &key));
        for (number, (payload, message)) in PAYLOADS.into_iter().zip(messages).skip(2).enumerate() {
            let mut sealed = [payload, &[0; TAG_LEN]].concat();
            keys[number % 2].seal((number / 2) as u64, &[], &mut sealed);
            assert_eq!(sealed, bytes(message), "{suite:?}, packet {number}");
        }
    }
}

fn end(suite: Suite, private: &str, ephemeral: &str, remote: Option<&str>) -> HandshakeState {
    let ephemeral = Ephemeral::new(bytes(ephemeral).try_into().unwrap());
    let (private, prologue, psk) = (bytes(private), bytes(PROLOGUE), bytes(PSK).try_into().unwrap());
    let remote = remote.map(bytes);
    let builder =
        Builder::with_resolver(suite.protocol().parse().unwrap(), Box::new(Primitives { ephemeral }))
            .local_private_key(&private)
            .and_then(|builder| builder.prologue(&prologue))
            .and_then(|builder| builder.psk(2, &psk))
            .unwrap();
    match &remote {
        Some(remote) => builder.remote_public_key(remote).unwrap().build_initiator().unwrap(),
        None => builder.build_responder().unwrap(),
    }
}

/// One message of the handshake, which is to be this one, and what is in it.
fn carry(from: &mut HandshakeState, to: &mut HandshakeState, payload: &[u8], message: &str) {
    let mut buffer = [0; 256];
    let len = from.write_message(payload, &mut buffer).unwrap();
    assert_eq!(buffer[..len], bytes(message));
    let mut read = [0; 256];
    let read_len = to.read_message(&buffer[..len], &mut read).unwrap();
    assert_eq!(read[..read_len], *payload);
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let pair = |at: usize| u8::from_str_radix(&hexadecimal[at..at + 2], 16).unwrap();
    (0..hexadecimal.len()).step_by(2).map(pair).collect()
}
