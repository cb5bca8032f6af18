//! A static file, to run the fastpath by hand: to learn from, to test, to measure.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use overmesh_core::noise::{HostKeys, PeerKeys, PresharedKey, PrivateKey, Suite};
use overmesh_core::peers::{PeerSpec, TableError};
use overmesh_core::pmtu::Pace;
use overmesh_core::wire::{geneve, wireguard};
use overmesh_io::offloads::Offload;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::engine::Desired;

/// The file, as README.md explains it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name of the TUN interface.
    pub interface: String,
    /// MTU of the inner network in bytes.
    pub mtu: u32,
    /// VNI; the same on all hosts.
    pub network_number: u32,
    /// UDP port; left out: that of the mode.
    pub port: Option<u16>,
    /// How many lanes; each has the next port.
    pub lanes: u32,
    /// Where this host's private key is, as `wg genkey` prints it. Left out: the network is plain.
    pub private_key_file: Option<PathBuf>,
    /// What the interface gets, each as `address/length`. None: left to the user.
    pub addresses: Vec<String>,
    /// Seconds after which it is tried at the latest whether a path takes more by now.
    pub path_mtu_raise: u64,
    /// Offloads to do without.
    #[serde(deserialize_with = "offloads")]
    pub no_offload: Vec<Offload>,
    /// Everyone else.
    #[serde(rename = "peer")]
    pub peers: Vec<Peer>,
}

/// One `[[peer]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Unique; also its id.
    pub name: String,
    /// See [`PeerSpec::prefixes`].
    pub prefixes: Vec<String>,
    /// See [`PeerSpec::endpoints`].
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// As `wg pubkey` prints it; needed in a sealed network.
    pub public_key: Option<String>,
    /// As `wg genpsk` prints it.
    pub preshared_key: Option<String>,
    /// Left out: what every WireGuard takes.
    #[serde(default)]
    pub suite: SuiteName,
    /// Say something every so many seconds, to keep a NAT open.
    pub keepalive: Option<u64>,
    /// How many lanes it has.
    #[serde(default = "one")]
    pub lanes: u32,
    /// No Overmesh, but a WireGuard or Geneve of another make.
    #[serde(default)]
    pub stock: bool,
}

/// A suite, as the file names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SuiteName {
    /// ChaCha20-Poly1305.
    #[default]
    Chacha,
    /// AES-256-GCM, between Overmesh hosts.
    Aes,
}

/// Why a file is of no use: cause and fix.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("{} cannot be read: {error}. check the path and who may read it", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{} line {line}: {message}. correct that line", path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{} is no key. write what `wg genkey`, `wg pubkey` or `wg genpsk` prints", .0)]
    Key(String),
    #[error(
        "peer {0} is stock, and suite aes is Overmesh's only: they would shake no hands. give it suite chacha"
    )]
    StockSuite(String),
    #[error("{}: {error}", path.display())]
    Table { path: PathBuf, error: TableError },
}

/// Why the interface could not be set up.
#[derive(Debug, Error)]
#[error("`{command}` failed: {reason}. correct `addresses` or leave it out, and run the command yourself")]
pub struct SetupError {
    command: String,
    reason: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interface: "om0".into(),
            mtu: 1420,
            network_number: 1,
            port: None,
            lanes: 1,
            private_key_file: None,
            addresses: vec![],
            path_mtu_raise: Pace::default().raise.as_secs(),
            no_offload: vec![],
            peers: vec![],
        }
    }
}

impl Config {
    /// Reads and checks a file. Logs a warning if others than its owner may read a secret.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let bytes = Zeroizing::new(read_bytes(path)?);
        let mut config = parse(&bytes).map_err(|(at, message)| ConfigError::Syntax {
            path: path.into(),
            line: bytes[..at].split(|byte| *byte == b'\n').count(),
            message,
        })?;
        config.private_key_file = config.private_key_file.map(|file| beside(path, &file));
        let desired = config.desired()?;
        desired.table().map_err(|error| ConfigError::Table { path: path.into(), error })?;
        config.secrets(path).filter(|secret| is_exposed(secret)).for_each(|secret| {
            let secret = secret.display();
            tracing::warn!("others on this host may read the key in {secret}: type `chmod 600 {secret}`");
        });
        Ok(config)
    }

    /// Files that hold a secret; `path` is this one's.
    fn secrets<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a Path> {
        let shared = self.peers.iter().any(|peer| peer.preshared_key.is_some());
        self.private_key_file.as_deref().into_iter().chain(shared.then_some(path))
    }

    /// What it asks the engine for.
    pub fn desired(&self) -> Result<Desired, ConfigError> {
        let private_key = self.private_key_file.as_deref().map(read_private_key).transpose()?;
        let mode_port = if private_key.is_some() { wireguard::PORT } else { geneve::PORT };
        Ok(Desired {
            revision: 0,
            interface: self.interface.clone(),
            mtu: self.mtu,
            network_number: self.network_number,
            port: self.port.unwrap_or(mode_port),
            lanes: self.lanes,
            host_keys: private_key.map(HostKeys::from),
            peers: self.peers.iter().map(spec).collect::<Result<_, _>>()?,
            base: None,
        })
    }

    /// How often paths are tried again.
    #[must_use]
    pub fn pace(&self) -> Pace {
        Pace { raise: Duration::from_secs(self.path_mtu_raise), ..Pace::default() }
    }

    /// Gives the interface its MTU and addresses and brings it up, with the commands that a user
    /// would type. Without addresses they are only logged, for the user to type.
    pub fn set_up_interface(&self) -> Result<(), SetupError> {
        let interface = &self.interface;
        let up = format!("ip link set {interface} mtu {} up", self.mtu);
        if self.addresses.is_empty() {
            let address = format!("ip address add ADDRESS/LENGTH dev {interface}");
            tracing::info!("the file has no addresses: set up the interface with `{up}` and `{address}`");
            return Ok(());
        }
        run(&up)?;
        self.addresses
            .iter()
            .try_for_each(|address| run(&format!("ip address replace {address} dev {interface}")))
    }
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|error| ConfigError::Read { path: path.into(), error })
}

/// What a file says; or where in it is what cannot be understood, and why.
fn parse(bytes: &[u8]) -> Result<Config, (usize, String)> {
    let text =
        str::from_utf8(bytes).map_err(|error| (error.valid_up_to(), "this is not UTF-8".to_owned()))?;
    toml::from_str(text).map_err(|error: toml::de::Error| {
        (error.span().map_or(0, |span| span.start), error.message().replace('\n', " "))
    })
}

/// Whether others than the owner of a file have any access to it, which is what `ssh` asks of keys.
fn is_exposed(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0)
}

fn one() -> u32 {
    1
}

fn offloads<'de, D: Deserializer<'de>>(names: D) -> Result<Vec<Offload>, D::Error> {
    Vec::<String>::deserialize(names)?.iter().map(|name| name.parse().map_err(D::Error::custom)).collect()
}

fn spec(peer: &Peer) -> Result<PeerSpec, ConfigError> {
    Ok(PeerSpec {
        id: peer.name.clone(),
        name: peer.name.clone(),
        prefixes: peer.prefixes.clone(),
        endpoints: peer.endpoints.clone(),
        keys: peer.public_key.as_deref().map(|key| keys(peer, key)).transpose()?,
        lanes: peer.lanes,
        stock: peer.stock,
    })
}

fn keys(peer: &Peer, public_key: &str) -> Result<PeerKeys, ConfigError> {
    if peer.stock && peer.suite == SuiteName::Aes {
        return Err(ConfigError::StockSuite(peer.name.clone()));
    }
    let key = |text: &str, which: &str| parse_key(text, || format!("the {which} of peer {}", peer.name));
    let preshared_key = peer.preshared_key.as_deref().map(|text| key(text, "preshared_key")).transpose()?;
    Ok(PeerKeys {
        public_key: key(public_key, "public_key")?.into(),
        previous: None,
        preshared_key: preshared_key.map(PresharedKey::from).unwrap_or_default(),
        suite: match peer.suite {
            SuiteName::Chacha => Suite::ChaChaPoly,
            SuiteName::Aes => Suite::AesGcm,
        },
        keepalive: peer.keepalive.filter(|seconds| *seconds > 0).map(Duration::from_secs),
    })
}

fn read_private_key(path: &Path) -> Result<PrivateKey, ConfigError> {
    let bytes = Zeroizing::new(read_bytes(path)?);
    let text = str::from_utf8(&bytes).unwrap_or_default();
    parse_key(text.trim(), || format!("what is in {}", path.display())).map(PrivateKey::from)
}

fn parse_key(text: &str, what: impl FnOnce() -> String) -> Result<[u8; 32], ConfigError> {
    let bytes = BASE64_STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| ConfigError::Key(what()))
}

/// A path in a file counts from that file's folder.
fn beside(file: &Path, path: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(path)
}

fn run(command: &str) -> Result<(), SetupError> {
    tracing::info!("{command}");
    let failed = |reason: String| SetupError { command: command.into(), reason };
    let mut words = command.split_whitespace();
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts.toml");
        std::fs::write(&path, text).unwrap();
        let folder = format!("{}/", folder.path().display());
        Config::read(&path).map_err(|error| error.to_string().replace(&folder, ""))
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = read("[[peer]]\nname = 'two'\nprefixes = ['10.77.0.2/32']").unwrap();
        let desired = config.desired().unwrap();
        assert_eq!((desired.interface.as_str(), desired.port, desired.mtu), ("om0", 6081, 1420));
        assert_eq!((desired.peers[0].id.as_str(), desired.peers[0].endpoints.len()), ("two", 0));
    }

    #[test]
    fn keys_are_as_wg_prints_them() {
        let key = BASE64_STANDARD.encode([2; 32]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts.toml");
        std::fs::write(folder.path().join("one.key"), format!("{}\n", BASE64_STANDARD.encode([1; 32])))
            .unwrap();
        let peer = format!("[[peer]]\nname = 'two'\nprefixes = []\npublic_key = '{key}'\nsuite = 'aes'\n");
        std::fs::write(&path, format!("private_key_file = 'one.key'\n{peer}")).unwrap();
        let desired = Config::read(&path).unwrap().desired().unwrap();
        assert_eq!((desired.port, desired.host_keys), (51820, Some(PrivateKey::from([1; 32]).into())));
        let keys = desired.peers[0].keys.clone().unwrap();
        assert_eq!((keys.public_key, keys.suite), ([2; 32].into(), Suite::AesGcm));

        std::fs::write(&path, format!("private_key_file = 'one.key'\n{}", peer.replace(&key, "AAA=")))
            .unwrap();
        let error = Config::read(&path).unwrap_err().to_string();
        assert!(error.starts_with("the public_key of peer two is no key. write what `wg genkey`"), "{error}");
        let stock = format!("private_key_file = 'one.key'\n{peer}stock = true\n");
        std::fs::write(&path, stock).unwrap();
        let error = Config::read(&path).unwrap_err().to_string();
        assert!(error.starts_with("peer two is stock, and suite aes is Overmesh's only: "), "{error}");
        assert!(read(&peer).unwrap_err().contains("peer two has a public key, and the network is plain"));
        assert!(read("private_key_file = 'none.key'").unwrap_err().contains("none.key cannot be read"));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = read("interface = 'om0'\nportt = 1\n").unwrap_err();
        assert!(error.starts_with("hosts.toml line 2: unknown field `portt`, expected one of"), "{error}");
        let error = read("[[peer]]\nname = 'two'\nprefixes = []\nkey = 1\n").unwrap_err();
        assert!(error.starts_with("hosts.toml line 4: unknown field `key`"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_text_is_not_called_unreadable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts.toml");
        std::fs::write(&path, b"mtu = 1420\ninterface = '\xff'\n").unwrap();
        let error = Config::read(&path).unwrap_err().to_string();
        assert!(error.ends_with("hosts.toml line 2: this is not UTF-8. correct that line"), "{error}");

        std::fs::write(folder.path().join("one.key"), [0xff; 44]).unwrap();
        std::fs::write(&path, "private_key_file = 'one.key'").unwrap();
        let error = Config::read(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("one.key is no key. write what `wg genkey`, `wg pubkey` or `wg genpsk` prints")
        );
    }

    #[test]
    fn offloads_are_switched_off_by_name() {
        assert_eq!(read("no_offload = ['uso', 'gro']").unwrap().no_offload, [Offload::Uso, Offload::Gro]);
        let error = read("no_offload = ['lro']").unwrap_err();
        assert!(error.starts_with("hosts.toml line 1: \"lro\" is no offload. choose from tso"), "{error}");
    }

    #[test]
    fn a_contradiction_is_refused_before_anything_is_opened() {
        let error = read("network_number = 0").unwrap_err();
        assert_eq!(error, "hosts.toml: network number 0 is no VNI. give one from 1 to 16777215");
    }

    #[test]
    fn lanes_are_one_unless_said_and_have_to_fit_the_ports() {
        let text = "lanes = 2\n[[peer]]\nname = 'two'\nprefixes = []\nlanes = 4\n[[peer]]\nname = 'three'\nprefixes = []";
        let desired = read(text).unwrap().desired().unwrap();
        assert_eq!((desired.lanes, desired.peers[0].lanes, desired.peers[1].lanes), (2, 4, 1));
        assert_eq!(read("").unwrap().lanes, 1);
        let error = read("port = 65535\nlanes = 2").unwrap_err();
        assert!(error.starts_with("hosts.toml: this host: 2 lanes from port 65535 on go beyond"), "{error}");
    }

    #[test]
    fn a_command_that_fails_is_named() {
        let error = run("ip address replace nonsense dev lo").unwrap_err().to_string();
        assert!(error.starts_with("`ip address replace nonsense dev lo` failed: "), "{error}");
    }
}
