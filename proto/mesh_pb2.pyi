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

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_AGENT: _ClassVar[Kind]
    KIND_WIREGUARD: _ClassVar[Kind]
MODE_UNSPECIFIED: Mode
MODE_PLAIN: Mode
MODE_SEALED: Mode
SUITE_UNSPECIFIED: Suite
SUITE_CHACHA: Suite
SUITE_AES: Suite
KIND_UNSPECIFIED: Kind
KIND_AGENT: Kind
KIND_WIREGUARD: Kind

class JoinRequest(_message.Message):
    __slots__ = ("token_id", "token_secret", "name", "csr", "public_key", "endpoints", "host_id", "version", "suites", "modes", "wait_seconds", "lanes")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SECRET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SUITES_FIELD_NUMBER: _ClassVar[int]
    MODES_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    token_id: str
    token_secret: str
    name: str
    csr: bytes
    public_key: bytes
    endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    host_id: str
    version: str
    suites: _containers.RepeatedScalarFieldContainer[Suite]
    modes: _containers.RepeatedScalarFieldContainer[Mode]
    wait_seconds: int
    lanes: int
    def __init__(self, token_id: _Optional[str] = ..., token_secret: _Optional[str] = ..., name: _Optional[str] = ..., csr: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., host_id: _Optional[str] = ..., version: _Optional[str] = ..., suites: _Optional[_Iterable[_Union[Suite, str]]] = ..., modes: _Optional[_Iterable[_Union[Mode, str]]] = ..., wait_seconds: _Optional[int] = ..., lanes: _Optional[int] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("node_id", "certificate", "network", "node", "controllers", "revision", "already_member", "root")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    CONTROLLERS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ALREADY_MEMBER_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    certificate: bytes
    network: bytes
    node: bytes
    controllers: _containers.RepeatedScalarFieldContainer[str]
    revision: int
    already_member: bool
    root: bytes
    def __init__(self, node_id: _Optional[str] = ..., certificate: _Optional[bytes] = ..., network: _Optional[bytes] = ..., node: _Optional[bytes] = ..., controllers: _Optional[_Iterable[str]] = ..., revision: _Optional[int] = ..., already_member: _Optional[bool] = ..., root: _Optional[bytes] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("network", "node_id", "csr")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    network: str
    node_id: str
    csr: bytes
    def __init__(self, network: _Optional[str] = ..., node_id: _Optional[str] = ..., csr: _Optional[bytes] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("certificate", "network", "node", "time")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    network: bytes
    node: bytes
    time: int
    def __init__(self, certificate: _Optional[bytes] = ..., network: _Optional[bytes] = ..., node: _Optional[bytes] = ..., time: _Optional[int] = ...) -> None: ...

class RootsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RootsReply(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, records: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class Signed(_message.Message):
    __slots__ = ("body", "signature")
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    signature: bytes
    def __init__(self, body: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("address", "port")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    address: str
    port: int
    def __init__(self, address: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class NetworkRecord(_message.Message):
    __slots__ = ("name", "number", "ranges", "mode", "mtu", "serial")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    number: int
    ranges: _containers.RepeatedScalarFieldContainer[str]
    mode: Mode
    mtu: int
    serial: int
    def __init__(self, name: _Optional[str] = ..., number: _Optional[int] = ..., ranges: _Optional[_Iterable[str]] = ..., mode: _Optional[_Union[Mode, str]] = ..., mtu: _Optional[int] = ..., serial: _Optional[int] = ...) -> None: ...

class NodeRecord(_message.Message):
    __slots__ = ("node_id", "network", "name", "public_key", "addresses", "routes", "tags", "serial", "not_after", "suites", "kind", "previous_public_key")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    SUITES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    network: str
    name: str
    public_key: bytes
    addresses: _containers.RepeatedScalarFieldContainer[str]
    routes: _containers.RepeatedScalarFieldContainer[str]
    tags: _containers.RepeatedScalarFieldContainer[str]
    serial: int
    not_after: int
    suites: _containers.RepeatedScalarFieldContainer[Suite]
    kind: Kind
    previous_public_key: bytes
    def __init__(self, node_id: _Optional[str] = ..., network: _Optional[str] = ..., name: _Optional[str] = ..., public_key: _Optional[bytes] = ..., addresses: _Optional[_Iterable[str]] = ..., routes: _Optional[_Iterable[str]] = ..., tags: _Optional[_Iterable[str]] = ..., serial: _Optional[int] = ..., not_after: _Optional[int] = ..., suites: _Optional[_Iterable[_Union[Suite, str]]] = ..., kind: _Optional[_Union[Kind, str]] = ..., previous_public_key: _Optional[bytes] = ...) -> None: ...

class EndpointsRecord(_message.Message):
    __slots__ = ("node_id", "network", "endpoints", "serial", "lanes")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    network: str
    endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    serial: int
    lanes: int
    def __init__(self, node_id: _Optional[str] = ..., network: _Optional[str] = ..., endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., serial: _Optional[int] = ..., lanes: _Optional[int] = ...) -> None: ...

class ControllerRecord(_message.Message):
    __slots__ = ("id", "mesh", "join", "serial", "roots")
    ID_FIELD_NUMBER: _ClassVar[int]
    MESH_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    ROOTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    mesh: _containers.RepeatedScalarFieldContainer[str]
    join: _containers.RepeatedScalarFieldContainer[str]
    serial: int
    roots: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., mesh: _Optional[_Iterable[str]] = ..., join: _Optional[_Iterable[str]] = ..., serial: _Optional[int] = ..., roots: _Optional[_Iterable[str]] = ...) -> None: ...

class RevocationRecord(_message.Message):
    __slots__ = ("node_id", "network", "name", "revoked_serial", "banned", "not_after", "serial", "reason")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVOKED_SERIAL_FIELD_NUMBER: _ClassVar[int]
    BANNED_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    network: str
    name: str
    revoked_serial: int
    banned: bool
    not_after: int
    serial: int
    reason: str
    def __init__(self, node_id: _Optional[str] = ..., network: _Optional[str] = ..., name: _Optional[str] = ..., revoked_serial: _Optional[int] = ..., banned: _Optional[bool] = ..., not_after: _Optional[int] = ..., serial: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class RootRecord(_message.Message):
    __slots__ = ("certificate", "retired", "serial")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    RETIRED_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    retired: bool
    serial: int
    def __init__(self, certificate: _Optional[bytes] = ..., retired: _Optional[bool] = ..., serial: _Optional[int] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("key", "signed")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNED_FIELD_NUMBER: _ClassVar[int]
    key: str
    signed: bytes
    def __init__(self, key: _Optional[str] = ..., signed: _Optional[bytes] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("hello", "ack")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    ack: Ack
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("revision", "digest", "host_id", "version", "instance", "replaced", "health")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    revision: int
    digest: bytes
    host_id: str
    version: str
    instance: str
    replaced: bool
    health: Health
    def __init__(self, revision: _Optional[int] = ..., digest: _Optional[bytes] = ..., host_id: _Optional[str] = ..., version: _Optional[str] = ..., instance: _Optional[str] = ..., replaced: _Optional[bool] = ..., health: _Optional[_Union[Health, _Mapping]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("revision", "digest", "apply_us", "problems", "traceparent", "health")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    APPLY_US_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    revision: int
    digest: bytes
    apply_us: int
    problems: _containers.RepeatedCompositeFieldContainer[Problem]
    traceparent: str
    health: Health
    def __init__(self, revision: _Optional[int] = ..., digest: _Optional[bytes] = ..., apply_us: _Optional[int] = ..., problems: _Optional[_Iterable[_Union[Problem, _Mapping]]] = ..., traceparent: _Optional[str] = ..., health: _Optional[_Union[Health, _Mapping]] = ...) -> None: ...

class Health(_message.Message):
    __slots__ = ("backend", "backend_reason", "mtu")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    BACKEND_REASON_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    backend: str
    backend_reason: str
    mtu: int
    def __init__(self, backend: _Optional[str] = ..., backend_reason: _Optional[str] = ..., mtu: _Optional[int] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("subject", "reason")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    subject: str
    reason: str
    def __init__(self, subject: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class WatchReply(_message.Message):
    __slots__ = ("snapshot", "delta", "heartbeat")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    snapshot: Snapshot
    delta: Delta
    heartbeat: Heartbeat
    def __init__(self, snapshot: _Optional[_Union[Snapshot, _Mapping]] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("revision", "digest", "chunk", "chunks", "items")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    digest: bytes
    chunk: int
    chunks: int
    items: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, revision: _Optional[int] = ..., digest: _Optional[bytes] = ..., chunk: _Optional[int] = ..., chunks: _Optional[int] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("from_revision", "to_revision", "digest", "traceparent", "removed", "items")
    FROM_REVISION_FIELD_NUMBER: _ClassVar[int]
    TO_REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    from_revision: int
    to_revision: int
    digest: bytes
    traceparent: str
    removed: _containers.RepeatedScalarFieldContainer[str]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, from_revision: _Optional[int] = ..., to_revision: _Optional[int] = ..., digest: _Optional[bytes] = ..., traceparent: _Optional[str] = ..., removed: _Optional[_Iterable[str]] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("revision", "digest")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    revision: int
    digest: bytes
    def __init__(self, revision: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("endpoints", "lanes", "host_id", "instance", "withheld")
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_FIELD_NUMBER: _ClassVar[int]
    endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    lanes: int
    host_id: str
    instance: str
    withheld: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., lanes: _Optional[int] = ..., host_id: _Optional[str] = ..., instance: _Optional[str] = ..., withheld: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: _Optional[int] = ...) -> None: ...

class HeadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HeadReply(_message.Message):
    __slots__ = ("revision", "digest")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    revision: int
    digest: bytes
    def __init__(self, revision: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("host_id", "instance")
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    host_id: str
    instance: str
    def __init__(self, host_id: _Optional[str] = ..., instance: _Optional[str] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: _Optional[int] = ...) -> None: ...

class RotateRequest(_message.Message):
    __slots__ = ("public_key", "previous_public_key", "csr", "host_id", "instance")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    previous_public_key: bytes
    csr: bytes
    host_id: str
    instance: str
    def __init__(self, public_key: _Optional[bytes] = ..., previous_public_key: _Optional[bytes] = ..., csr: _Optional[bytes] = ..., host_id: _Optional[str] = ..., instance: _Optional[str] = ...) -> None: ...

class RotateReply(_message.Message):
    __slots__ = ("certificate", "node", "revision")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    node: bytes
    revision: int
    def __init__(self, certificate: _Optional[bytes] = ..., node: _Optional[bytes] = ..., revision: _Optional[int] = ...) -> None: ...
