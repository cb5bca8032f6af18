//! `overmesh-fastpath`: carries the packets of one host. See README.md.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::{Parser, ValueEnum};
use overmesh_core::noise;
use overmesh_core::pmtu::Pace;
use overmesh_fastpath::backend::TunBackend;
use overmesh_fastpath::command::Event;
use overmesh_fastpath::config::{Config, ConfigError, SetupError};
use overmesh_fastpath::control::Control;
use overmesh_fastpath::engine::{Engine, EngineError};
use overmesh_fastpath::server::{Server, SocketError};
use overmesh_io::fault::Faults;
use overmesh_io::offloads::{Offload, Offloads};
use rustix::fs::Mode;
use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{Mutex, Notify};
use tracing::info;

/// Carries the packets of one host of an Overmesh network.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Options {
    /// Serve the agent on this unix socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Run by hand with this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Check the file and exit
    #[arg(long, requires = "config")]
    check: bool,

    /// How to write the log, one line an event, to stderr
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,

    /// Write inner packets to this file, for Wireshark
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,

    /// Spoil what is sent, for tests: loss, duplicate, corrupt, reorder (0 to 1), delay, seed
    #[arg(long, value_name = "loss=0.05,seed=7")]
    fault: Option<Faults>,

    /// Do without these offloads: tso, uso (super-packets of the TUN), gso, gro (of UDP), avx512 (ciphers)
    #[arg(long, value_name = "uso,gro", value_delimiter = ',')]
    no_offload: Vec<Offload>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Why the process ends: cause and fix.
#[derive(Debug, Error)]
enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("neither --socket nor --config is given: there is nothing to do. give one of them, or both")]
    NothingToDo,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("the host refused a resource: {0}. check the limits of this process with `prlimit`")]
    Host(#[from] std::io::Error),
    #[error("device {device} is lost: {reason}. start the fastpath again")]
    DeviceLost { device: String, reason: String },
}

impl Error {
    /// In a line what `clap` says in several.
    fn usage(error: &clap::Error) -> Self {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let lines: Vec<_> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
        let cause = lines.join(" ");
        Self::Usage(match error.kind() {
            // What values are good, their own types say.
            ErrorKind::ValueValidation => cause,
            _ => format!("{cause}. type `overmesh-fastpath --help` for what there is"),
        })
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::NothingToDo | Self::Config(_) => 2.into(),
            _ => 1.into(),
        }
    }
}

fn main() -> ExitCode {
    match parse_options().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    }
}

/// The options; ends the process after `--help` and `--version`.
fn parse_options() -> Result<Options, Error> {
    let options = Options::try_parse()
        .map_err(|error| if error.use_stderr() { Error::usage(&error) } else { error.exit() })?;
    if options.socket.is_none() && options.config.is_none() {
        return Err(Error::NothingToDo);
    }
    Ok(options)
}

fn run(options: Options) -> Result<(), Error> {
    start_log(options.log_format);
    // The socket and captures are the owner's only, from the moment they exist.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let config = options.config.as_deref().map(Config::read).transpose()?;
    if options.check {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(options, config))
}

/// Runs until a signal, a Shutdown call or the loss of a device, and leaves nothing behind.
async fn serve(options: Options, config: Option<Config>) -> Result<(), Error> {
    let signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let unwanted = config.as_ref().map_or(&[][..], |config| &config.no_offload);
    let offloads = Arc::new(Offloads::without(&[&options.no_offload, unwanted].concat()));
    if offloads.is_wanted(Offload::Avx512) {
        offloads.tried(Offload::Avx512, noise::accelerate());
    }
    let backend = TunBackend { capture: options.pcap, faults: options.fault, offloads };
    let pace = config.as_ref().map_or_else(Pace::default, Config::pace);
    let mut engine = Engine::new(Box::new(backend)).with_pace(pace);
    let events = engine.events();
    if let Some(config) = config {
        engine.apply(&config.desired()?).await?;
        config.set_up_interface()?;
    }

    let engine = Arc::new(Mutex::new(engine));
    let shutdown = Arc::new(Notify::new());
    let control = Control::new(engine.clone(), shutdown.clone());
    let server = options.socket.map(|path| Server::start(&path, control)).transpose()?;
    info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "started");

    let end = until_end(signals, &shutdown, events).await;
    engine.lock().await.announce_end();
    if let Some(server) = server {
        server.stop().await;
    }
    engine.lock().await.stop();
    end
}

async fn until_end(
    [mut terminate, mut interrupt]: [Signal; 2],
    shutdown: &Notify,
    events: broadcast::Receiver<Event>,
) -> Result<(), Error> {
    tokio::select! {
        _ = terminate.recv() => info!("stopping: SIGTERM"),
        _ = interrupt.recv() => info!("stopping: SIGINT"),
        () = shutdown.notified() => info!("stopping: asked to"),
        error = device_lost(events) => return Err(error),
    }
    Ok(())
}

/// Logs events until a device is lost.
async fn device_lost(mut events: broadcast::Receiver<Event>) -> Error {
    loop {
        match events.recv().await {
            Ok(Event::PeerHeard(peer)) => info!(peer, "peer heard"),
            Ok(Event::DeviceLost { device, reason }) => return Error::DeviceLost { device, reason },
            Ok(Event::Stopping) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

fn start_log(format: LogFormat) {
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
