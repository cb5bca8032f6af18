from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    MODE_PLAIN: _ClassVar[Mode]
    MODE_SEALED: _ClassVar[Mode]

class Suite(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUITE_UNSPECIFIED: _ClassVar[Suite]
    SUITE_CHACHA: _ClassVar[Suite]
    SUITE_AES: _ClassVar[Suite]
MODE_UNSPECIFIED: Mode
MODE_PLAIN: Mode
MODE_SEALED: Mode
SUITE_UNSPECIFIED: Suite
SUITE_CHACHA: Suite
SUITE_AES: Suite

class ApplyRequest(_message.Message):
    __slots__ = ("revision", "tun", "mtu", "network_number", "port", "peers", "private_key", "lanes", "other_private_key")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TUN_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    NETWORK_NUMBER_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_KEY_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    OTHER_PRIVATE_KEY_FIELD_NUMBER: _ClassVar[int]
    revision: int
    tun: str
    mtu: int
    network_number: int
    port: int
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    private_key: bytes
    lanes: int
    other_private_key: bytes
    def __init__(self, revision: _Optional[int] = ..., tun: _Optional[str] = ..., mtu: _Optional[int] = ..., network_number: _Optional[int] = ..., port: _Optional[int] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., private_key: _Optional[bytes] = ..., lanes: _Optional[int] = ..., other_private_key: _Optional[bytes] = ...) -> None: ...

class ChangeRequest(_message.Message):
    __slots__ = ("desired", "removed", "base")
    DESIRED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    desired: ApplyRequest
    removed: _containers.RepeatedScalarFieldContainer[str]
    base: bytes
    def __init__(self, desired: _Optional[_Union[ApplyRequest, _Mapping]] = ..., removed: _Optional[_Iterable[str]] = ..., base: _Optional[bytes] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("id", "name", "prefixes", "endpoints", "mode", "public_key", "preshared_key", "suite", "keepalive_s", "lanes", "stock", "previous_public_key")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    PRESHARED_KEY_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_S_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    STOCK_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    prefixes: _containers.RepeatedScalarFieldContainer[str]
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    mode: Mode
    public_key: bytes
    preshared_key: bytes
    suite: Suite
    keepalive_s: int
    lanes: int
    stock: bool
    previous_public_key: bytes
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., prefixes: _Optional[_Iterable[str]] = ..., endpoints: _Optional[_Iterable[str]] = ..., mode: _Optional[_Union[Mode, str]] = ..., public_key: _Optional[bytes] = ..., preshared_key: _Optional[bytes] = ..., suite: _Optional[_Union[Suite, str]] = ..., keepalive_s: _Optional[int] = ..., lanes: _Optional[int] = ..., stock: _Optional[bool] = ..., previous_public_key: _Optional[bytes] = ...) -> None: ...

class ApplyReply(_message.Message):
    __slots__ = ("revision", "peers", "changed", "table_digest")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    TABLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    revision: int
    peers: int
    changed: bool
    table_digest: bytes
    def __init__(self, revision: _Optional[int] = ..., peers: _Optional[int] = ..., changed: _Optional[bool] = ..., table_digest: _Optional[bytes] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ("without_peers",)
    WITHOUT_PEERS_FIELD_NUMBER: _ClassVar[int]
    without_peers: bool
    def __init__(self, without_peers: _Optional[bool] = ...) -> None: ...

class StatsReply(_message.Message):
    __slots__ = ("revision", "backend", "backend_reason", "pid", "uptime_ms", "version", "listening", "peers", "drops", "mtu", "table_digest", "offloads", "lanes", "handed_over", "socket_buffers")
    class DropsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    REVISION_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    BACKEND_REASON_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_MS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LISTENING_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    DROPS_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    TABLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFLOADS_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    HANDED_OVER_FIELD_NUMBER: _ClassVar[int]
    SOCKET_BUFFERS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    backend: str
    backend_reason: str
    pid: int
    uptime_ms: int
    version: str
    listening: _containers.RepeatedScalarFieldContainer[str]
    peers: _containers.RepeatedCompositeFieldContainer[PeerStats]
    drops: _containers.ScalarMap[str, int]
    mtu: int
    table_digest: bytes
    offloads: _containers.RepeatedCompositeFieldContainer[Offload]
    lanes: int
    handed_over: int
    socket_buffers: SocketBuffers
    def __init__(self, revision: _Optional[int] = ..., backend: _Optional[str] = ..., backend_reason: _Optional[str] = ..., pid: _Optional[int] = ..., uptime_ms: _Optional[int] = ..., version: _Optional[str] = ..., listening: _Optional[_Iterable[str]] = ..., peers: _Optional[_Iterable[_Union[PeerStats, _Mapping]]] = ..., drops: _Optional[_Mapping[str, int]] = ..., mtu: _Optional[int] = ..., table_digest: _Optional[bytes] = ..., offloads: _Optional[_Iterable[_Union[Offload, _Mapping]]] = ..., lanes: _Optional[int] = ..., handed_over: _Optional[int] = ..., socket_buffers: _Optional[_Union[SocketBuffers, _Mapping]] = ...) -> None: ...

class SocketBuffers(_message.Message):
    __slots__ = ("receive", "send", "wanted")
    RECEIVE_FIELD_NUMBER: _ClassVar[int]
    SEND_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    receive: int
    send: int
    wanted: int
    def __init__(self, receive: _Optional[int] = ..., send: _Optional[int] = ..., wanted: _Optional[int] = ...) -> None: ...

class Offload(_message.Message):
    __slots__ = ("name", "on", "reason", "failures", "unwanted")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ON_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    UNWANTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    on: bool
    reason: str
    failures: int
    unwanted: bool
    def __init__(self, name: _Optional[str] = ..., on: _Optional[bool] = ..., reason: _Optional[str] = ..., failures: _Optional[int] = ..., unwanted: _Optional[bool] = ...) -> None: ...

class PeerStats(_message.Message):
    __slots__ = ("id", "endpoint", "tx_packets", "tx_bytes", "rx_packets", "rx_bytes", "last_heard_ms_ago", "drops", "mode", "suite", "last_handshake_ms_ago", "path_mtu", "path_mtu_probed", "endpoints")
    class DropsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    TX_PACKETS_FIELD_NUMBER: _ClassVar[int]
    TX_BYTES_FIELD_NUMBER: _ClassVar[int]
    RX_PACKETS_FIELD_NUMBER: _ClassVar[int]
    RX_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAST_HEARD_MS_AGO_FIELD_NUMBER: _ClassVar[int]
    DROPS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    LAST_HANDSHAKE_MS_AGO_FIELD_NUMBER: _ClassVar[int]
    PATH_MTU_FIELD_NUMBER: _ClassVar[int]
    PATH_MTU_PROBED_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    endpoint: str
    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int
    last_heard_ms_ago: int
    drops: _containers.ScalarMap[str, int]
    mode: Mode
    suite: Suite
    last_handshake_ms_ago: int
    path_mtu: int
    path_mtu_probed: bool
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., endpoint: _Optional[str] = ..., tx_packets: _Optional[int] = ..., tx_bytes: _Optional[int] = ..., rx_packets: _Optional[int] = ..., rx_bytes: _Optional[int] = ..., last_heard_ms_ago: _Optional[int] = ..., drops: _Optional[_Mapping[str, int]] = ..., mode: _Optional[_Union[Mode, str]] = ..., suite: _Optional[_Union[Suite, str]] = ..., last_handshake_ms_ago: _Optional[int] = ..., path_mtu: _Optional[int] = ..., path_mtu_probed: _Optional[bool] = ..., endpoints: _Optional[_Iterable[str]] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Event(_message.Message):
    __slots__ = ("started", "peer_heard", "device_lost")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PEER_HEARD_FIELD_NUMBER: _ClassVar[int]
    DEVICE_LOST_FIELD_NUMBER: _ClassVar[int]
    started: Started
    peer_heard: PeerHeard
    device_lost: DeviceLost
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., peer_heard: _Optional[_Union[PeerHeard, _Mapping]] = ..., device_lost: _Optional[_Union[DeviceLost, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("pid", "version", "revision")
    PID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    pid: int
    version: str
    revision: int
    def __init__(self, pid: _Optional[int] = ..., version: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class PeerHeard(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class DeviceLost(_message.Message):
    __slots__ = ("device", "reason")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    device: str
    reason: str
    def __init__(self, device: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ("peer", "size", "timeout_ms")
    PEER_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    peer: str
    size: int
    timeout_ms: int
    def __init__(self, peer: _Optional[str] = ..., size: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class ProbeReply(_message.Message):
    __slots__ = ("answered", "rtt_ns", "endpoint")
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    RTT_NS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    answered: bool
    rtt_ns: int
    endpoint: str
    def __init__(self, answered: _Optional[bool] = ..., rtt_ns: _Optional[int] = ..., endpoint: _Optional[str] = ...) -> None: ...

class ShutdownRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShutdownReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
