//! The way out: datagrams of one length to one peer, gathered into runs that go to the kernel in one
//! piece.

use std::io;

use overmesh_core::offload::cut::Cut;
use overmesh_core::tunnel::{Framing, Tunnel};
use overmesh_io::device::{Batch, Device, Packet};

/// Bytes of the largest run: what IPv4 leaves beside its header and UDP's.
pub(crate) const MAX_RUN: usize = 65_507;
/// Runs that wait for the end of a turn.
const RUNS: usize = 64;

/// The runs of a turn.
pub(crate) struct Runs(Batch);

impl Runs {
    pub(crate) fn new() -> Self {
        Self(Batch::new(RUNS, MAX_RUN))
    }

    /// Cuts a packet and puts each segment, framed, into a run. Sends the runs when they are full.
    pub(crate) fn add(
        &mut self,
        cut: &Cut,
        framing: &mut impl Framing,
        outer: &mut dyn Device,
        tunnel: &Tunnel,
    ) -> io::Result<()> {
        let before = framing.room_before();
        let max_segments = outer.capabilities().max_segments;
        for at in 0..cut.count() {
            let inner_len = cut.len(at);
            let len = framing.datagram_len(inner_len);
            let run = match self.open_run(framing, len, max_segments) {
                Some(run) => run,
                None => self.begin_run(framing, len, outer, tunnel)?,
            };
            let run = &mut self.0.packets_mut()[run];
            run.load.add(inner_len);
            let datagram = run.extend(len);
            cut.write(at, &mut datagram[before..before + inner_len]);
            framing.frame(datagram, inner_len);
        }
        Ok(())
    }

    /// Sends what is gathered and counts it.
    pub(crate) fn flush(&mut self, outer: &mut dyn Device, tunnel: &Tunnel) -> io::Result<()> {
        outer.send(&mut self.0)?;
        for run in self.0.packets() {
            tunnel.sent(run.owner, run.load, run.refused);
        }
        self.0.clear();
        Ok(())
    }

    /// The latest run to that peer, if it takes so many bytes more. Only the latest: datagrams to one
    /// peer stay in order.
    fn open_run(&self, framing: &impl Framing, len: usize, max_segments: usize) -> Option<usize> {
        let latest = self.0.packets().iter().rposition(|run| run.owner == Some(framing.peer()))?;
        takes(&self.0.packets()[latest], len, max_segments).then_some(latest)
    }

    fn begin_run(
        &mut self,
        framing: &impl Framing,
        len: usize,
        outer: &mut dyn Device,
        tunnel: &Tunnel,
    ) -> io::Result<usize> {
        if self.0.vacant().is_empty() {
            self.flush(outer, tunnel)?;
        }
        let run = &mut self.0.vacant()[0];
        run.address = framing.endpoint();
        run.owner = Some(framing.peer());
        run.segment_len = len;
        self.0.grow(1);
        Ok(self.0.packets().len() - 1)
    }
}

/// A datagram shorter than the others ends its run.
fn takes(run: &Packet, len: usize, max_segments: usize) -> bool {
    len <= run.segment_len
        && run.len().is_multiple_of(run.segment_len)
        && run.len() / run.segment_len < max_segments
        && run.len() + len <= MAX_RUN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_takes_datagrams_up_to_its_own_length_until_a_shorter_one() {
        let takes = |filled: usize, segment_len, len| {
            let mut batch = Batch::new(1, MAX_RUN);
            let run = batch.push(&vec![0; filled]).unwrap();
            run.segment_len = segment_len;
            takes(run, len, 64)
        };
        assert!(takes(0, 100, 100) && takes(300, 100, 100) && takes(300, 100, 1));
        assert!(!takes(300, 100, 101), "longer");
        assert!(!takes(299, 100, 100) && !takes(299, 100, 1), "after a shorter one");
        assert!(takes(6300, 100, 100) && !takes(6400, 100, 100), "64 are there");
        assert!(takes(64_500, 1500, 1007) && !takes(64_500, 1500, 1008), "too many bytes");
    }
}
