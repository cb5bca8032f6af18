//! The unix socket that the agent finds the fastpath at, and the server behind it.

use std::fs::{Permissions, remove_file, set_permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport;

use crate::control::Control;
use crate::proto::fastpath_server::FastpathServer;

/// A table of some ten thousand peers is a few megabytes.
const MESSAGE_LIMIT: usize = 64 << 20;
/// How long calls under way may take to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why the socket could not be made: cause and fix.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum SocketError {
    #[error("another fastpath listens on {}. stop it, or choose another --socket", .0.display())]
    InUse(PathBuf),
    #[error("{} is not a socket. remove it, or choose another --socket", .0.display())]
    NotSocket(PathBuf),
    #[error("socket {} cannot be made: {error}. check that its folder exists and is writable", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// A running server.
pub struct Server {
    task: JoinHandle<Result<(), transport::Error>>,
    stop: oneshot::Sender<()>,
    _socket: SocketFile,
}

impl Server {
    /// Serves `control` on a socket that only the owner may use. A socket file that nobody listens
    /// on is replaced.
    pub fn start(path: &Path, control: Control) -> Result<Self, SocketError> {
        let (listener, socket) = bind(path)?;
        let (stop, stopped) = oneshot::channel();
        let service = FastpathServer::new(control).max_decoding_message_size(MESSAGE_LIMIT);
        let serving = transport::Server::builder().add_service(service).serve_with_incoming_shutdown(
            UnixListenerStream::new(listener),
            async {
                let _ = stopped.await;
            },
        );
        Ok(Self { task: tokio::spawn(serving), stop, _socket: socket })
    }

    /// Takes no more calls, lets those under way end, and removes the socket.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        if timeout(PATIENCE, self.task).await.is_err() {
            tracing::warn!("some calls did not end in time and were cut off");
        }
    }
}

/// Removes the file when dropped.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = remove_file(&self.0);
    }
}

fn bind(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |error| SocketError::Io { path: path.into(), error };
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    let socket = SocketFile(path.into());
    set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok((listener, socket))
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |error| SocketError::Io { path: path.into(), error };
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.into())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            if !path.symlink_metadata().map_err(failed)?.file_type().is_socket() {
                return Err(SocketError::NotSocket(path.into()));
            }
            remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}
