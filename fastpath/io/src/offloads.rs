//! The offloads of kernel and processor that speed packets up: which are asked for, which are had.
//!
//! Each is tried, those of the kernel when a device is opened; each may be switched off by the user, and those
//! of the kernel may turn out unusable while packets flow. What became of each is here, for the statistics.

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::device::OpenError;

/// One offload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// TCP super-packets between host and TUN, both ways (TSO, and GRO on the way in).
    Tso,
    /// UDP super-packets between host and TUN, both ways. Linux 6.2.
    Uso,
    /// Many datagrams to one peer in one piece to the kernel (`UDP_SEGMENT`). Linux 4.18.
    Gso,
    /// Many datagrams of one peer in one piece from the kernel (`UDP_GRO`). Linux 5.0.
    Gro,
    /// Ciphers by AVX-512. Of the processor.
    Avx512,
}

impl Offload {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Tso, Self::Uso, Self::Gso, Self::Gro, Self::Avx512];

    /// Its name in options and statistics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tso => "tso",
            Self::Uso => "uso",
            Self::Gso => "gso",
            Self::Gro => "gro",
            Self::Avx512 => "avx512",
        }
    }

    /// Whose it is, in words.
    const fn owner(self) -> &'static str {
        match self {
            Self::Avx512 => "processor",
            _ => "kernel",
        }
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Offload {
    type Err = OpenError;

    fn from_str(text: &str) -> Result<Self, OpenError> {
        let known = Self::ALL.into_iter().find(|offload| offload.name() == text.trim());
        known.ok_or_else(|| {
            OpenError::new(format!("{text:?} is no offload"), "choose from tso, uso, gso, gro and avx512")
        })
    }
}

/// The state of all offloads; devices write it, statistics read it.
#[derive(Debug)]
pub struct Offloads([State; Offload::ALL.len()]);

#[derive(Debug)]
struct State {
    unwanted: bool,
    on: AtomicBool,
    failures: AtomicU64,
    reason: Mutex<String>,
}

/// One offload as the statistics tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which.
    pub offload: Offload,
    /// Whether it is in use.
    pub on: bool,
    /// Why so.
    pub reason: String,
    /// How often the kernel refused it while packets flowed.
    pub failures: u64,
    /// Whether the user does without it.
    pub unwanted: bool,
}

impl Default for Offloads {
    fn default() -> Self {
        Self::without(&[])
    }
}

impl Offloads {
    /// All but those that are unwanted, as far as the kernel has them.
    #[must_use]
    pub fn without(unwanted: &[Offload]) -> Self {
        Self(Offload::ALL.map(|offload| {
            let unwanted = unwanted.contains(&offload);
            let reason = if unwanted { "switched off" } else { "not tried yet" };
            State {
                unwanted,
                on: AtomicBool::new(false),
                failures: AtomicU64::new(0),
                reason: Mutex::new(reason.into()),
            }
        }))
    }

    /// Whether it shall be tried.
    #[must_use]
    pub fn is_wanted(&self, offload: Offload) -> bool {
        !self.state(offload).unwanted
    }

    /// Whether it is in use.
    #[must_use]
    pub fn is_on(&self, offload: Offload) -> bool {
        self.state(offload).on.load(Relaxed)
    }

    /// Notes what came of trying it, unless it is unwanted. That it is not there is logged.
    pub fn tried(&self, offload: Offload, outcome: Result<(), impl fmt::Display>) {
        let state = self.state(offload);
        if state.unwanted {
            return;
        }
        state.on.store(outcome.is_ok(), Relaxed);
        match outcome {
            Ok(()) => state.explain(format!("the {} has it", offload.owner())),
            Err(error) => {
                let owner = offload.owner();
                // Kernels are upgraded; a processor stays as it is.
                if offload == Offload::Avx512 {
                    tracing::info!(%error, "ciphers without AVX-512");
                } else {
                    tracing::warn!(%offload, %error, "this kernel lacks an offload: packets are carried slower");
                }
                state.explain(format!("the {owner} lacks it: {error}"));
            }
        }
    }

    /// Notes that the kernel refused it for some packets, which went without. Logged the first time.
    pub(crate) fn failed(&self, offload: Offload, reason: impl fmt::Display) {
        let state = self.state(offload);
        if state.failures.fetch_add(1, Relaxed) == 0 {
            tracing::warn!(%offload, %reason, "an offload was refused: these packets go without");
            state.explain(format!("the kernel has it, not always: {reason}"));
        }
    }

    /// Notes that it is of no more use, and turns it off. Logged.
    pub(crate) fn lost(&self, offload: Offload, reason: impl fmt::Display) {
        let state = self.state(offload);
        state.failures.fetch_add(1, Relaxed);
        if state.on.swap(false, Relaxed) {
            tracing::warn!(%offload, %reason, "an offload is lost: packets are carried slower");
            state.explain(format!("lost: {reason}"));
        }
    }

    /// All of them, as they are now.
    #[must_use]
    pub fn report(&self) -> Vec<Report> {
        Offload::ALL
            .map(|offload| {
                let state = self.state(offload);
                Report {
                    offload,
                    on: state.on.load(Relaxed),
                    reason: state.reason.lock().map(|reason| reason.clone()).unwrap_or_default(),
                    failures: state.failures.load(Relaxed),
                    unwanted: state.unwanted,
                }
            })
            .into()
    }

    fn state(&self, offload: Offload) -> &State {
        &self.0[offload as usize]
    }
}

impl State {
    fn explain(&self, text: String) {
        if let Ok(mut reason) = self.reason.lock() {
            *reason = text;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(offloads: &Offloads, offload: Offload) -> (bool, String, u64) {
        let Report { on, reason, failures, .. } = offloads.report().remove(offload as usize);
        (on, reason, failures)
    }

    #[test]
    fn what_the_user_switched_off_stays_off() {
        let offloads = Offloads::without(&[Offload::Uso]);
        for offload in Offload::ALL {
            offloads.tried(offload, Ok::<_, &str>(()));
        }
        assert!(!offloads.is_wanted(Offload::Uso) && !offloads.is_on(Offload::Uso));
        assert_eq!(report(&offloads, Offload::Uso), (false, "switched off".into(), 0));
        let unwanted = offloads.report().into_iter().filter(|report| report.unwanted);
        assert_eq!(unwanted.map(|report| report.offload).collect::<Vec<_>>(), [Offload::Uso]);
        assert_eq!(report(&offloads, Offload::Tso), (true, "the kernel has it".into(), 0));
    }

    #[test]
    fn what_is_lost_says_why_and_is_counted() {
        let offloads = Offloads::default();
        offloads.tried(Offload::Gso, Ok::<_, &str>(()));
        offloads.tried(Offload::Gro, Err("no such option"));
        offloads.failed(Offload::Gso, "one route");
        assert!(offloads.is_on(Offload::Gso));
        offloads.lost(Offload::Gso, "all routes");
        assert_eq!(report(&offloads, Offload::Gso), (false, "lost: all routes".into(), 2));
        assert_eq!(report(&offloads, Offload::Gro), (false, "the kernel lacks it: no such option".into(), 0));
    }

    #[test]
    fn a_wrong_name_is_named() {
        assert_eq!("gro".parse::<Offload>().unwrap(), Offload::Gro);
        let error = "lro".parse::<Offload>().unwrap_err().to_string();
        assert_eq!(error, "\"lro\" is no offload. choose from tso, uso, gso, gro and avx512");
    }
}
