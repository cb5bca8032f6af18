//! The highest rate of UDP datagrams that arrive from one network namespace in another, with at most
//! 0.5 % lost: a paced sender, a counter, and a search between them (RFC 2544 section 26.1).
//!
//! ```text
//! paced FROM TO ADDRESS BYTES      namespaces by name; TO has ADDRESS; BYTES of payload
//! ```
//!
//! Prints datagrams a second. `benchmarks/` runs it for each contender.

use std::env::args;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use overmesh_io::device::{Batch, Device};
use overmesh_io::offloads::{Offload, Offloads};
use overmesh_io::poll::Poller;
use overmesh_io::udp::Udp;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const TRIAL: Duration = Duration::from_millis(250);
/// What is on its way when a trial ends has this long to arrive.
const TAIL: Duration = Duration::from_millis(50);
/// Between looks at the clock, when nothing is due.
const NAP: Duration = Duration::from_micros(50);
const BURST: usize = 32;
const FIRST_RATE: f64 = 20_000.0;
const LAST_RATE: f64 = 3_000_000.0;
const STEP: f64 = 1.6;
const REFINEMENTS: usize = 4;
/// A rate is too high when it was lost at so often: other work on the machine spoils single trials.
const ATTEMPTS: usize = 2;

fn main() {
    let arguments: Vec<String> = args().skip(1).collect();
    let [from, to, address, bytes] = &arguments[..] else {
        panic!("usage: paced FROM TO ADDRESS BYTES");
    };
    let (to, tally) = (to.clone(), Arc::<AtomicU64>::default());
    let counter = tally.clone();
    let receiver = thread::spawn(move || open_in(&to)).join().expect("the receiver opens");
    let port = receiver.listening()[0].port();
    thread::spawn(move || count(receiver, &counter));
    let mut sender = Sender {
        udp: open_in(from),
        to: SocketAddr::new(address.parse().expect("an address"), port),
        payload: vec![0; bytes.parse().expect("a number of bytes")],
        received: tally,
    };
    println!("{:.0}", sender.search());
}

/// A socket as most programs have it: one datagram is one datagram.
fn open_in(namespace: &str) -> Udp {
    let file = File::open(format!("/run/netns/{namespace}")).expect("the namespace is there");
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("this is root");
    Udp::open(0, Arc::new(Offloads::without(&Offload::ALL))).expect("a UDP socket")
}

fn count(mut udp: Udp, received: &AtomicU64) {
    let mut poller = Poller::default();
    poller.watch(0, udp.descriptors());
    let mut batch = Batch::new(BURST, 2048);
    loop {
        poller.wait(None).expect("poll");
        batch.clear();
        udp.recv(&mut batch).expect("the socket lives");
        received.fetch_add(batch.packets().len() as u64, Relaxed);
    }
}

struct Sender {
    udp: Udp,
    to: SocketAddr,
    payload: Vec<u8>,
    received: Arc<AtomicU64>,
}

impl Sender {
    /// Up in steps until datagrams get lost, then between the last two.
    fn search(&mut self) -> f64 {
        let (mut good, mut bad, mut best) = (0.0, FIRST_RATE, 0.0);
        while bad < LAST_RATE
            && let Some(arrived) = self.trials(bad)
        {
            (good, bad, best) = (bad, bad * STEP, arrived);
        }
        for _ in 0..REFINEMENTS {
            let rate = f64::midpoint(good, bad);
            match self.trials(rate) {
                Some(arrived) => (good, best) = (rate, arrived),
                None => bad = rate,
            }
        }
        best
    }

    fn trials(&mut self, rate: f64) -> Option<f64> {
        (0..ATTEMPTS).find_map(|_| self.trial(rate))
    }

    /// Datagrams a second that arrived, if (nearly) all did and the sender kept its pace.
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    fn trial(&mut self, rate: f64) -> Option<f64> {
        let before = self.received.load(Relaxed);
        let sent = self.send_at(rate) as f64;
        sleep(TAIL);
        let arrived = (self.received.load(Relaxed) - before) as f64;
        let seconds = TRIAL.as_secs_f64();
        (arrived >= sent * 0.995 && sent >= rate * seconds * 0.9).then_some(arrived / seconds)
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    fn send_at(&mut self, rate: f64) -> usize {
        let (start, mut sent) = (Instant::now(), 0);
        let mut batch = Batch::new(BURST, 2048);
        loop {
            let elapsed = start.elapsed();
            if elapsed >= TRIAL {
                return sent;
            }
            let due = (elapsed.as_secs_f64() * rate) as usize - sent;
            if due == 0 {
                sleep(NAP);
                continue;
            }
            batch.clear();
            for _ in 0..due.min(BURST) {
                batch.push(&self.payload).expect("the batch has room").address = self.to;
            }
            self.udp.send(&mut batch).expect("the socket lives");
            sent += batch.packets().iter().filter(|packet| packet.refused.is_none()).count();
        }
    }
}
