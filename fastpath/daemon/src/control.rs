//! The agent's way in: `proto/fastpath.proto` served on a unix socket.

use std::sync::Arc;
use std::time::Duration;

use overmesh_core::noise::{HostKeys, PeerKeys, PresharedKey, Suite};
use overmesh_core::peers::PeerSpec;
use tokio::sync::{Mutex, Notify, broadcast};
use tokio::time::timeout;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt, once};
use tonic::{Request, Response, Status};

use crate::command;
use crate::engine::{Base, Desired, Engine, EngineError};
use crate::proto;
use crate::proto::event::Body;
use crate::proto::fastpath_server::Fastpath;
use crate::proto::{
    ApplyReply, ApplyRequest, ChangeRequest, DeviceLost, Event, EventsRequest, Mode, Peer, PeerHeard,
    ProbeReply, ProbeRequest, ShutdownReply, ShutdownRequest, Started, StatsReply, StatsRequest,
};
use crate::stats::{VERSION, pid, stats};

/// How long a probe waits that does not say how long.
const PROBE_TIMEOUT_MS: u32 = 1000;

/// The service. Clones share one engine.
#[derive(Clone)]
pub struct Control {
    engine: Arc<Mutex<Engine>>,
    shutdown: Arc<Notify>,
}

impl Control {
    /// Serves an engine. `shutdown` is notified when a client asks the process to end.
    #[must_use]
    pub fn new(engine: Arc<Mutex<Engine>>, shutdown: Arc<Notify>) -> Self {
        Self { engine, shutdown }
    }

    async fn make_so(&self, desired: Desired) -> Result<Response<ApplyReply>, Status> {
        let applied = self.engine.lock().await.apply(&desired).await.map_err(|error| status(&error))?;
        let peers = u32::try_from(applied.peers).unwrap_or(u32::MAX);
        Ok(Response::new(ApplyReply {
            revision: desired.revision,
            peers,
            changed: applied.changed,
            table_digest: applied.digest.into(),
        }))
    }
}

#[tonic::async_trait]
impl Fastpath for Control {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyReply>, Status> {
        self.make_so(desired(request.into_inner())?).await
    }

    async fn change(&self, request: Request<ChangeRequest>) -> Result<Response<ApplyReply>, Status> {
        let ChangeRequest { desired: wanted, removed, base } = request.into_inner();
        let base = Some(Base { digest: base, removed });
        self.make_so(Desired { base, ..desired(wanted.unwrap_or_default())? }).await
    }

    async fn stats(&self, request: Request<StatsRequest>) -> Result<Response<StatsReply>, Status> {
        let StatsRequest { without_peers } = request.into_inner();
        Ok(Response::new(stats(&*self.engine.lock().await, !without_peers)))
    }

    type EventsStream = Events;

    async fn events(&self, _: Request<EventsRequest>) -> Result<Response<Events>, Status> {
        let engine = self.engine.lock().await;
        let started = Started { pid: pid(), version: VERSION.into(), revision: engine.revision() };
        Ok(Response::new(events(started, engine.events())))
    }

    async fn probe(&self, request: Request<ProbeRequest>) -> Result<Response<ProbeReply>, Status> {
        let ProbeRequest { peer, size, timeout_ms } = request.into_inner();
        let echo = self.engine.lock().await.probe(&peer, size as usize).map_err(|error| status(&error))?;
        let patience = if timeout_ms == 0 { PROBE_TIMEOUT_MS } else { timeout_ms };
        let answer = timeout(Duration::from_millis(patience.into()), echo.answer).await;
        let rtt = answer.ok().and_then(Result::ok);
        Ok(Response::new(ProbeReply {
            answered: rtt.is_some(),
            rtt_ns: rtt.map_or(0, |rtt| u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX)),
            endpoint: echo.endpoint.to_string(),
        }))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Result<Response<ShutdownReply>, Status> {
        self.shutdown.notify_one();
        Ok(Response::new(ShutdownReply {}))
    }
}

type Events = std::pin::Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

/// Started, then what happens until the process stops. A reader that lags loses the oldest.
fn events(started: Started, receiver: broadcast::Receiver<command::Event>) -> Events {
    let rest = BroadcastStream::new(receiver)
        .filter_map(Result::ok)
        .take_while(|event| *event != command::Event::Stopping)
        .filter_map(body);
    let all = once(Body::Started(started)).chain(rest);
    Box::pin(all.map(|body| Ok(Event { body: Some(body) })))
}

fn body(event: command::Event) -> Option<Body> {
    match event {
        command::Event::PeerHeard(id) => Some(Body::PeerHeard(PeerHeard { id })),
        command::Event::DeviceLost { device, reason } => {
            Some(Body::DeviceLost(DeviceLost { device, reason }))
        }
        command::Event::Stopping => None,
    }
}

fn desired(request: ApplyRequest) -> Result<Desired, Status> {
    let port = u16::try_from(request.port).ok().filter(|port| *port != 0).ok_or_else(|| {
        Status::invalid_argument(format!("port {} is no UDP port. give one from 1 to 65535", request.port))
    })?;
    let own = key("the host's private key", request.private_key)?;
    let other = key("the host's other private key", request.other_private_key)?;
    if own.is_none() && other.is_some() {
        return Err(Status::invalid_argument(
            "the host has another private key and none of its own. give it one to begin handshakes with",
        ));
    }
    Ok(Desired {
        revision: request.revision,
        interface: request.tun,
        mtu: request.mtu,
        network_number: request.network_number,
        port,
        lanes: request.lanes,
        host_keys: own.map(|own| HostKeys { own: own.into(), other: other.map(Into::into) }),
        peers: request.peers.into_iter().map(peer).collect::<Result<_, _>>()?,
        base: None,
    })
}

fn peer(peer: Peer) -> Result<PeerSpec, Status> {
    let keys = match peer.mode() {
        Mode::Plain => None,
        Mode::Sealed => Some(peer_keys(&peer)?),
        Mode::Unspecified => {
            let cause = format!("peer {} has no mode. set it to plain or sealed", peer.id);
            return Err(Status::invalid_argument(cause));
        }
    };
    let Peer { id, name, prefixes, endpoints, lanes, stock, .. } = peer;
    Ok(PeerSpec { id, name, prefixes, endpoints, keys, lanes, stock })
}

fn peer_keys(peer: &Peer) -> Result<PeerKeys, Status> {
    let public_key = key(&format!("peer {}: the public key", peer.id), peer.public_key.clone())?;
    let public_key = public_key.ok_or_else(|| {
        Status::invalid_argument(format!("peer {} is sealed and has no public key. give it one", peer.id))
    })?;
    let previous =
        key(&format!("peer {}: the previous public key", peer.id), peer.previous_public_key.clone())?;
    let preshared_key = key(&format!("peer {}: the preshared key", peer.id), peer.preshared_key.clone())?;
    Ok(PeerKeys {
        public_key: public_key.into(),
        previous: previous.map(Into::into),
        preshared_key: preshared_key.map(PresharedKey::from).unwrap_or_default(),
        suite: match peer.suite() {
            proto::Suite::Unspecified | proto::Suite::Chacha => Suite::ChaChaPoly,
            proto::Suite::Aes => Suite::AesGcm,
        },
        keepalive: Some(peer.keepalive_s).filter(|s| *s > 0).map(|s| Duration::from_secs(s.into())),
    })
}

/// Empty is none.
fn key(what: &str, bytes: Vec<u8>) -> Result<Option<[u8; 32]>, Status> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let bytes = zeroize::Zeroizing::new(bytes);
    let key = <[u8; 32]>::try_from(bytes.as_slice());
    key.map(Some)
        .map_err(|_| Status::invalid_argument(format!("{what} has {} bytes. a key has 32", bytes.len())))
}

fn status(error: &EngineError) -> Status {
    let message = error.to_string();
    match error {
        EngineError::Table(_) | EngineError::ProbeTooBig(_) => Status::invalid_argument(message),
        EngineError::UnknownPeer(_) => Status::not_found(message),
        EngineError::OtherBase
        | EngineError::Device(_)
        | EngineError::Host(_)
        | EngineError::Stopped
        | EngineError::PortsOverlap { .. }
        | EngineError::NotApplied
        | EngineError::NoEndpoint(_) => Status::failed_precondition(message),
    }
}
