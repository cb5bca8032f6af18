//! Is heard by a WireGuard peer late in a session's life: seals echo requests with counters that take days
//! or ages to reach, and prints those that were answered.
//!
//! ```text
//! late PRIVATE_KEY PUBLIC_KEY ENDPOINT FROM TO COUNTER…
//! ```
//!
//! Keys in hexadecimal: this end's and the peer's; addresses inside, from which and to which; counters in
//! ascending order, in one session. `tests/interop` runs it against wireguard-go.

use std::env::args;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use overmesh_core::noise::{Now, Output, PeerKeys, Peers, PrivateKey, PublicKey, message_len};
use overmesh_core::peers::PeerIndex;
use overmesh_core::wire::ip;
use overmesh_core::wire::wireguard::HEADER_LEN;

const MTU: usize = 1420;
const PATIENCE: Duration = Duration::from_secs(5);
const ICMP: u8 = 1;
/// Type 8, its checksum, number 1 of sequence 1.
const ECHO_REQUEST: [u8; 8] = [8, 0, 0xf7, 0xfd, 0, 1, 0, 1];

fn main() {
    let arguments: Vec<String> = args().skip(1).collect();
    let [private, public, endpoint, from, to, counters @ ..] = &arguments[..] else {
        panic!("usage: late PRIVATE_KEY PUBLIC_KEY ENDPOINT FROM TO COUNTER…");
    };
    let mut end = End::new(PrivateKey::from(key(private)), key(public).into(), endpoint.parse().unwrap());
    let packet = echo_request(from.parse().unwrap(), to.parse().unwrap());
    end.peers.wait(end.peer, &packet, end.now()).unwrap();
    assert!(end.is_answered(), "no session");
    for counter in counters {
        end.peers.wear(end.peer, counter.parse().unwrap());
        end.send(&packet);
        if end.is_answered() {
            println!("{counter}");
        }
    }
}

struct End {
    peers: Peers,
    peer: PeerIndex,
    socket: UdpSocket,
    clock: Instant,
}

impl End {
    fn new(private: PrivateKey, public: PublicKey, endpoint: SocketAddr) -> Self {
        let mut source = File::open("/dev/urandom").unwrap();
        let random = Box::new(move |bytes: &mut [u8]| source.read_exact(bytes).unwrap());
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut peers, clock) = (Peers::new(private, random), Instant::now());
        peers.install([(PeerKeys::new(public), Some(endpoint))], MTU, now_on(clock));
        let Some(Output::Moved(peer, _)) = peers.poll_output() else { panic!("the peer is installed") };
        Self { peers, peer, socket, clock }
    }

    fn now(&self) -> Now {
        now_on(self.clock)
    }

    fn send(&mut self, packet: &[u8]) {
        let now = self.now();
        let mut sealer = self.peers.sealer(self.peer, now).expect("the session lives");
        let mut message = vec![0; message_len(packet.len(), MTU)];
        message[HEADER_LEN..][..packet.len()].copy_from_slice(packet);
        sealer.seal(&mut message);
        self.socket.send_to(&message, sealer.endpoint).unwrap();
    }

    /// Whether a packet comes before patience ends.
    fn is_answered(&mut self) -> bool {
        loop {
            while let Some(output) = self.peers.poll_output() {
                if let Output::Transmit { endpoint, message, .. } = output {
                    self.socket.send_to(&message, endpoint).unwrap();
                }
            }
            let Ok(received) = self.receive() else { return false };
            if received > 0 {
                return true;
            }
        }
    }

    /// Takes a datagram; returns the length of the packet in it.
    fn receive(&mut self) -> io::Result<usize> {
        let mut datagram = [0; 2048];
        let (len, source) = self.socket.recv_from(&mut datagram)?;
        let now = self.now();
        let received = self.peers.handle_datagram(&mut datagram[..len], source, now);
        Ok(received.map_or(0, |received| received.packet.len()))
    }
}

fn now_on(clock: Instant) -> Now {
    Now { time: clock.elapsed(), unix: SystemTime::UNIX_EPOCH.elapsed().unwrap() }
}

fn echo_request(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let mut packet = ip::emit(from, to, &ECHO_REQUEST);
    packet[9] = ICMP;
    packet[10..12].fill(0);
    let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("a header is short");
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn key(hexadecimal: &str) -> [u8; 32] {
    let bytes = (0..32).map(|at| u8::from_str_radix(&hexadecimal[2 * at..][..2], 16));
    bytes.collect::<Result<Vec<_>, _>>().unwrap().try_into().unwrap()
}
