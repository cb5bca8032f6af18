from overmesh.proto import mesh_pb2 as _mesh_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("name", "node_id", "network", "network_number", "mode", "addresses", "interface", "mtu", "mtu_reason", "fastpath", "revision", "digest", "map_age_seconds", "controller", "peers", "drops", "problems", "endpoints", "version", "membership", "certificate_until", "membership_until", "keys_since", "key_change")
    class DropsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    NETWORK_NUMBER_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    INTERFACE_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    MTU_REASON_FIELD_NUMBER: _ClassVar[int]
    FASTPATH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAP_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    DROPS_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_UNTIL_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_UNTIL_FIELD_NUMBER: _ClassVar[int]
    KEYS_SINCE_FIELD_NUMBER: _ClassVar[int]
    KEY_CHANGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    node_id: str
    network: str
    network_number: int
    mode: _mesh_pb2.Mode
    addresses: _containers.RepeatedScalarFieldContainer[str]
    interface: str
    mtu: int
    mtu_reason: str
    fastpath: Fastpath
    revision: int
    digest: bytes
    map_age_seconds: float
    controller: Controller
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    drops: _containers.ScalarMap[str, int]
    problems: _containers.RepeatedCompositeFieldContainer[_mesh_pb2.Problem]
    endpoints: _containers.RepeatedCompositeFieldContainer[_mesh_pb2.Endpoint]
    version: str
    membership: str
    certificate_until: int
    membership_until: int
    keys_since: int
    key_change: KeyChange
    def __init__(self, name: _Optional[str] = ..., node_id: _Optional[str] = ..., network: _Optional[str] = ..., network_number: _Optional[int] = ..., mode: _Optional[_Union[_mesh_pb2.Mode, str]] = ..., addresses: _Optional[_Iterable[str]] = ..., interface: _Optional[str] = ..., mtu: _Optional[int] = ..., mtu_reason: _Optional[str] = ..., fastpath: _Optional[_Union[Fastpath, _Mapping]] = ..., revision: _Optional[int] = ..., digest: _Optional[bytes] = ..., map_age_seconds: _Optional[float] = ..., controller: _Optional[_Union[Controller, _Mapping]] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., drops: _Optional[_Mapping[str, int]] = ..., problems: _Optional[_Iterable[_Union[_mesh_pb2.Problem, _Mapping]]] = ..., endpoints: _Optional[_Iterable[_Union[_mesh_pb2.Endpoint, _Mapping]]] = ..., version: _Optional[str] = ..., membership: _Optional[str] = ..., certificate_until: _Optional[int] = ..., membership_until: _Optional[int] = ..., keys_since: _Optional[int] = ..., key_change: _Optional[_Union[KeyChange, _Mapping]] = ...) -> None: ...

class Fastpath(_message.Message):
    __slots__ = ("running", "pid", "backend", "reason", "uptime_seconds", "version", "listening", "restarts", "offloads", "lanes", "socket_buffers")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LISTENING_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    OFFLOADS_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    SOCKET_BUFFERS_FIELD_NUMBER: _ClassVar[int]
    running: bool
    pid: int
    backend: str
    reason: str
    uptime_seconds: float
    version: str
    listening: _containers.RepeatedScalarFieldContainer[str]
    restarts: int
    offloads: _containers.RepeatedCompositeFieldContainer[Offload]
    lanes: int
    socket_buffers: SocketBuffers
    def __init__(self, running: _Optional[bool] = ..., pid: _Optional[int] = ..., backend: _Optional[str] = ..., reason: _Optional[str] = ..., uptime_seconds: _Optional[float] = ..., version: _Optional[str] = ..., listening: _Optional[_Iterable[str]] = ..., restarts: _Optional[int] = ..., offloads: _Optional[_Iterable[_Union[Offload, _Mapping]]] = ..., lanes: _Optional[int] = ..., socket_buffers: _Optional[_Union[SocketBuffers, _Mapping]] = ...) -> None: ...

class KeyChange(_message.Message):
    __slots__ = ("stage", "until", "error")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    stage: str
    until: int
    error: str
    def __init__(self, stage: _Optional[str] = ..., until: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("name", "on", "reason", "failures")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ON_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    on: bool
    reason: str
    failures: int
    def __init__(self, name: _Optional[str] = ..., on: _Optional[bool] = ..., reason: _Optional[str] = ..., failures: _Optional[int] = ...) -> None: ...

class Controller(_message.Message):
    __slots__ = ("address", "connected", "error", "since_seconds")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SINCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    address: str
    connected: bool
    error: str
    since_seconds: float
    def __init__(self, address: _Optional[str] = ..., connected: _Optional[bool] = ..., error: _Optional[str] = ..., since_seconds: _Optional[float] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("name", "node_id", "addresses", "endpoint", "mode", "last_heard_seconds", "tx_packets", "tx_bytes", "rx_packets", "rx_bytes", "drops", "kind", "suite", "last_handshake_seconds", "path_mtu", "path_mtu_probed", "endpoints")
    class DropsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    LAST_HEARD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TX_PACKETS_FIELD_NUMBER: _ClassVar[int]
    TX_BYTES_FIELD_NUMBER: _ClassVar[int]
    RX_PACKETS_FIELD_NUMBER: _ClassVar[int]
    RX_BYTES_FIELD_NUMBER: _ClassVar[int]
    DROPS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    LAST_HANDSHAKE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PATH_MTU_FIELD_NUMBER: _ClassVar[int]
    PATH_MTU_PROBED_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    node_id: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    endpoint: str
    mode: _mesh_pb2.Mode
    last_heard_seconds: float
    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int
    drops: _containers.ScalarMap[str, int]
    kind: _mesh_pb2.Kind
    suite: _mesh_pb2.Suite
    last_handshake_seconds: float
    path_mtu: int
    path_mtu_probed: bool
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., node_id: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., endpoint: _Optional[str] = ..., mode: _Optional[_Union[_mesh_pb2.Mode, str]] = ..., last_heard_seconds: _Optional[float] = ..., tx_packets: _Optional[int] = ..., tx_bytes: _Optional[int] = ..., rx_packets: _Optional[int] = ..., rx_bytes: _Optional[int] = ..., drops: _Optional[_Mapping[str, int]] = ..., kind: _Optional[_Union[_mesh_pb2.Kind, str]] = ..., suite: _Optional[_Union[_mesh_pb2.Suite, str]] = ..., last_handshake_seconds: _Optional[float] = ..., path_mtu: _Optional[int] = ..., path_mtu_probed: _Optional[bool] = ..., endpoints: _Optional[_Iterable[str]] = ...) -> None: ...

class PingRequest(_message.Message):
    __slots__ = ("peer", "count", "interval_ms", "timeout_ms")
    PEER_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    peer: str
    count: int
    interval_ms: int
    timeout_ms: int
    def __init__(self, peer: _Optional[str] = ..., count: _Optional[int] = ..., interval_ms: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class PingReply(_message.Message):
    __slots__ = ("sequence", "answered", "rtt_ns", "peer", "address", "path")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    RTT_NS_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    answered: bool
    rtt_ns: int
    peer: str
    address: str
    path: str
    def __init__(self, sequence: _Optional[int] = ..., answered: _Optional[bool] = ..., rtt_ns: _Optional[int] = ..., peer: _Optional[str] = ..., address: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class WaitRequest(_message.Message):
    __slots__ = ("revision", "timeout_ms")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    timeout_ms: int
    def __init__(self, revision: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class WaitReply(_message.Message):
    __slots__ = ("reached", "revision", "reason")
    REACHED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    reached: bool
    revision: int
    reason: str
    def __init__(self, reached: _Optional[bool] = ..., revision: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class RotateKeysRequest(_message.Message):
    __slots__ = ("grace_seconds",)
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    grace_seconds: int
    def __init__(self, grace_seconds: _Optional[int] = ...) -> None: ...

class RotateKeysReply(_message.Message):
    __slots__ = ("until", "stock_peers")
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    STOCK_PEERS_FIELD_NUMBER: _ClassVar[int]
    until: int
    stock_peers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, until: _Optional[int] = ..., stock_peers: _Optional[_Iterable[str]] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("force",)
    FORCE_FIELD_NUMBER: _ClassVar[int]
    force: bool
    def __init__(self, force: _Optional[bool] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ("told_controller", "copy_of")
    TOLD_CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    COPY_OF_FIELD_NUMBER: _ClassVar[int]
    told_controller: bool
    copy_of: str
    def __init__(self, told_controller: _Optional[bool] = ..., copy_of: _Optional[str] = ...) -> None: ...
