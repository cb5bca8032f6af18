from overmesh.proto import mesh_pb2 as _mesh_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateTokenRequest(_message.Message):
    __slots__ = ("network", "ttl_seconds", "uses", "tags", "approval")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    network: str
    ttl_seconds: int
    uses: int
    tags: _containers.RepeatedScalarFieldContainer[str]
    approval: bool
    def __init__(self, network: _Optional[str] = ..., ttl_seconds: _Optional[int] = ..., uses: _Optional[int] = ..., tags: _Optional[_Iterable[str]] = ..., approval: _Optional[bool] = ...) -> None: ...

class CreateTokenReply(_message.Message):
    __slots__ = ("token", "secret_token", "join_line")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SECRET_TOKEN_FIELD_NUMBER: _ClassVar[int]
    JOIN_LINE_FIELD_NUMBER: _ClassVar[int]
    token: Token
    secret_token: str
    join_line: str
    def __init__(self, token: _Optional[_Union[Token, _Mapping]] = ..., secret_token: _Optional[str] = ..., join_line: _Optional[str] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("id", "network", "expires", "uses_left", "unlimited", "revoked", "tags", "created", "approval")
    ID_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    USES_LEFT_FIELD_NUMBER: _ClassVar[int]
    UNLIMITED_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    id: str
    network: str
    expires: int
    uses_left: int
    unlimited: bool
    revoked: bool
    tags: _containers.RepeatedScalarFieldContainer[str]
    created: int
    approval: bool
    def __init__(self, id: _Optional[str] = ..., network: _Optional[str] = ..., expires: _Optional[int] = ..., uses_left: _Optional[int] = ..., unlimited: _Optional[bool] = ..., revoked: _Optional[bool] = ..., tags: _Optional[_Iterable[str]] = ..., created: _Optional[int] = ..., approval: _Optional[bool] = ...) -> None: ...

class ListTokensRequest(_message.Message):
    __slots__ = ("network",)
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    network: str
    def __init__(self, network: _Optional[str] = ...) -> None: ...

class ListTokensReply(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    def __init__(self, tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ...) -> None: ...

class RevokeTokenRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class RevokeTokenReply(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: _Optional[int] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("id", "name", "network", "public_key", "addresses", "routes", "tags", "serial", "not_after", "endpoints", "online", "last_seen", "acked_revision", "in_step", "backend", "backend_reason", "mtu", "version", "problems", "kind", "suites", "lanes", "connected_from", "connected_since", "host_id", "copies")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    ONLINE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    ACKED_REVISION_FIELD_NUMBER: _ClassVar[int]
    IN_STEP_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    BACKEND_REASON_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUITES_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FROM_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_SINCE_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    network: str
    public_key: bytes
    addresses: _containers.RepeatedScalarFieldContainer[str]
    routes: _containers.RepeatedScalarFieldContainer[str]
    tags: _containers.RepeatedScalarFieldContainer[str]
    serial: int
    not_after: int
    endpoints: _containers.RepeatedCompositeFieldContainer[_mesh_pb2.Endpoint]
    online: bool
    last_seen: int
    acked_revision: int
    in_step: bool
    backend: str
    backend_reason: str
    mtu: int
    version: str
    problems: _containers.RepeatedCompositeFieldContainer[_mesh_pb2.Problem]
    kind: _mesh_pb2.Kind
    suites: _containers.RepeatedScalarFieldContainer[_mesh_pb2.Suite]
    lanes: int
    connected_from: str
    connected_since: int
    host_id: str
    copies: _containers.RepeatedCompositeFieldContainer[Copy]
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., network: _Optional[str] = ..., public_key: _Optional[bytes] = ..., addresses: _Optional[_Iterable[str]] = ..., routes: _Optional[_Iterable[str]] = ..., tags: _Optional[_Iterable[str]] = ..., serial: _Optional[int] = ..., not_after: _Optional[int] = ..., endpoints: _Optional[_Iterable[_Union[_mesh_pb2.Endpoint, _Mapping]]] = ..., online: _Optional[bool] = ..., last_seen: _Optional[int] = ..., acked_revision: _Optional[int] = ..., in_step: _Optional[bool] = ..., backend: _Optional[str] = ..., backend_reason: _Optional[str] = ..., mtu: _Optional[int] = ..., version: _Optional[str] = ..., problems: _Optional[_Iterable[_Union[_mesh_pb2.Problem, _Mapping]]] = ..., kind: _Optional[_Union[_mesh_pb2.Kind, str]] = ..., suites: _Optional[_Iterable[_Union[_mesh_pb2.Suite, str]]] = ..., lanes: _Optional[int] = ..., connected_from: _Optional[str] = ..., connected_since: _Optional[int] = ..., host_id: _Optional[str] = ..., copies: _Optional[_Iterable[_Union[Copy, _Mapping]]] = ...) -> None: ...

class Copy(_message.Message):
    __slots__ = ("host_id", "since", "last_seen", "instance")
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    host_id: str
    since: int
    last_seen: int
    instance: str
    def __init__(self, host_id: _Optional[str] = ..., since: _Optional[int] = ..., last_seen: _Optional[int] = ..., instance: _Optional[str] = ..., **kwargs) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ("network", "node")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    network: str
    node: str
    def __init__(self, network: _Optional[str] = ..., node: _Optional[str] = ...) -> None: ...

class ListNodesReply(_message.Message):
    __slots__ = ("nodes", "revision", "problems")
    NODES_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    revision: int
    problems: _containers.RepeatedCompositeFieldContainer[_mesh_pb2.Problem]
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., revision: _Optional[int] = ..., problems: _Optional[_Iterable[_Union[_mesh_pb2.Problem, _Mapping]]] = ...) -> None: ...

class RemoveNodeRequest(_message.Message):
    __slots__ = ("network", "node")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    network: str
    node: str
    def __init__(self, network: _Optional[str] = ..., node: _Optional[str] = ...) -> None: ...

class RemoveNodeReply(_message.Message):
    __slots__ = ("node", "revision")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    node: Node
    revision: int
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ..., revision: _Optional[int] = ...) -> None: ...

class Revocation(_message.Message):
    __slots__ = ("node_id", "network", "name", "revoked_serial", "banned", "not_after", "reason", "at")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVOKED_SERIAL_FIELD_NUMBER: _ClassVar[int]
    BANNED_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    network: str
    name: str
    revoked_serial: int
    banned: bool
    not_after: int
    reason: str
    at: int
    def __init__(self, node_id: _Optional[str] = ..., network: _Optional[str] = ..., name: _Optional[str] = ..., revoked_serial: _Optional[int] = ..., banned: _Optional[bool] = ..., not_after: _Optional[int] = ..., reason: _Optional[str] = ..., at: _Optional[int] = ...) -> None: ...

class RevokeNodeRequest(_message.Message):
    __slots__ = ("network", "node", "reason", "unknown")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    network: str
    node: str
    reason: str
    unknown: bool
    def __init__(self, network: _Optional[str] = ..., node: _Optional[str] = ..., reason: _Optional[str] = ..., unknown: _Optional[bool] = ...) -> None: ...

class RevokeNodeReply(_message.Message):
    __slots__ = ("revocation", "revision", "was_member")
    REVOCATION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WAS_MEMBER_FIELD_NUMBER: _ClassVar[int]
    revocation: Revocation
    revision: int
    was_member: bool
    def __init__(self, revocation: _Optional[_Union[Revocation, _Mapping]] = ..., revision: _Optional[int] = ..., was_member: _Optional[bool] = ...) -> None: ...

class ListRevocationsRequest(_message.Message):
    __slots__ = ("network",)
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    network: str
    def __init__(self, network: _Optional[str] = ...) -> None: ...

class ListRevocationsReply(_message.Message):
    __slots__ = ("revocations", "revision")
    REVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revocations: _containers.RepeatedCompositeFieldContainer[Revocation]
    revision: int
    def __init__(self, revocations: _Optional[_Iterable[_Union[Revocation, _Mapping]]] = ..., revision: _Optional[int] = ...) -> None: ...

class Pending(_message.Message):
    __slots__ = ("id", "name", "network", "public_key", "fingerprint", "host_id", "token", "tags", "asked", "expires", "state", "decided_by")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    network: str
    public_key: bytes
    fingerprint: bytes
    host_id: str
    token: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    asked: int
    expires: int
    state: str
    decided_by: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., network: _Optional[str] = ..., public_key: _Optional[bytes] = ..., fingerprint: _Optional[bytes] = ..., host_id: _Optional[str] = ..., token: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., asked: _Optional[int] = ..., expires: _Optional[int] = ..., state: _Optional[str] = ..., decided_by: _Optional[str] = ..., **kwargs) -> None: ...

class ListPendingRequest(_message.Message):
    __slots__ = ("network",)
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    network: str
    def __init__(self, network: _Optional[str] = ...) -> None: ...

class ListPendingReply(_message.Message):
    __slots__ = ("pending",)
    PENDING_FIELD_NUMBER: _ClassVar[int]
    pending: _containers.RepeatedCompositeFieldContainer[Pending]
    def __init__(self, pending: _Optional[_Iterable[_Union[Pending, _Mapping]]] = ...) -> None: ...

class DecideRequest(_message.Message):
    __slots__ = ("network", "node")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    network: str
    node: str
    def __init__(self, network: _Optional[str] = ..., node: _Optional[str] = ...) -> None: ...

class DecideReply(_message.Message):
    __slots__ = ("pending", "revision")
    PENDING_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    pending: Pending
    revision: int
    def __init__(self, pending: _Optional[_Union[Pending, _Mapping]] = ..., revision: _Optional[int] = ...) -> None: ...

class AuditRequest(_message.Message):
    __slots__ = ("since", "node", "follow")
    SINCE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    since: int
    node: str
    follow: bool
    def __init__(self, since: _Optional[int] = ..., node: _Optional[str] = ..., follow: _Optional[bool] = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("id", "at_ms", "what", "network", "subject", "name", "who", "controller", "details", "revision", "genuine")
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    GENUINE_FIELD_NUMBER: _ClassVar[int]
    id: str
    at_ms: int
    what: str
    network: str
    subject: str
    name: str
    who: str
    controller: str
    details: _containers.ScalarMap[str, str]
    revision: int
    genuine: bool
    def __init__(self, id: _Optional[str] = ..., at_ms: _Optional[int] = ..., what: _Optional[str] = ..., network: _Optional[str] = ..., subject: _Optional[str] = ..., name: _Optional[str] = ..., who: _Optional[str] = ..., controller: _Optional[str] = ..., details: _Optional[_Mapping[str, str]] = ..., revision: _Optional[int] = ..., genuine: _Optional[bool] = ..., **kwargs) -> None: ...

class AddPeerRequest(_message.Message):
    __slots__ = ("network", "name", "public_key", "endpoints")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    network: str
    name: str
    public_key: bytes
    endpoints: _containers.RepeatedCompositeFieldContainer[_mesh_pb2.Endpoint]
    def __init__(self, network: _Optional[str] = ..., name: _Optional[str] = ..., public_key: _Optional[bytes] = ..., endpoints: _Optional[_Iterable[_Union[_mesh_pb2.Endpoint, _Mapping]]] = ...) -> None: ...

class AddPeerReply(_message.Message):
    __slots__ = ("node", "revision", "already_member")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ALREADY_MEMBER_FIELD_NUMBER: _ClassVar[int]
    node: Node
    revision: int
    already_member: bool
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ..., revision: _Optional[int] = ..., already_member: _Optional[bool] = ...) -> None: ...

class Network(_message.Message):
    __slots__ = ("name", "number", "ranges", "mode", "mtu", "revision", "nodes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    name: str
    number: int
    ranges: _containers.RepeatedScalarFieldContainer[str]
    mode: _mesh_pb2.Mode
    mtu: int
    revision: int
    nodes: int
    def __init__(self, name: _Optional[str] = ..., number: _Optional[int] = ..., ranges: _Optional[_Iterable[str]] = ..., mode: _Optional[_Union[_mesh_pb2.Mode, str]] = ..., mtu: _Optional[int] = ..., revision: _Optional[int] = ..., nodes: _Optional[int] = ...) -> None: ...

class CreateNetworkRequest(_message.Message):
    __slots__ = ("name", "ranges", "mode", "mtu")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    name: str
    ranges: _containers.RepeatedScalarFieldContainer[str]
    mode: _mesh_pb2.Mode
    mtu: int
    def __init__(self, name: _Optional[str] = ..., ranges: _Optional[_Iterable[str]] = ..., mode: _Optional[_Union[_mesh_pb2.Mode, str]] = ..., mtu: _Optional[int] = ...) -> None: ...

class CreateNetworkReply(_message.Message):
    __slots__ = ("network",)
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    network: Network
    def __init__(self, network: _Optional[_Union[Network, _Mapping]] = ...) -> None: ...

class ListNetworksRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListNetworksReply(_message.Message):
    __slots__ = ("networks",)
    NETWORKS_FIELD_NUMBER: _ClassVar[int]
    networks: _containers.RepeatedCompositeFieldContainer[Network]
    def __init__(self, networks: _Optional[_Iterable[_Union[Network, _Mapping]]] = ...) -> None: ...

class WaitRequest(_message.Message):
    __slots__ = ("network", "revision", "timeout_ms")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    network: str
    revision: int
    timeout_ms: int
    def __init__(self, network: _Optional[str] = ..., revision: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class WaitReply(_message.Message):
    __slots__ = ("converged", "revision", "agents", "behind")
    CONVERGED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    converged: bool
    revision: int
    agents: int
    behind: _containers.RepeatedCompositeFieldContainer[Behind]
    def __init__(self, converged: _Optional[bool] = ..., revision: _Optional[int] = ..., agents: _Optional[int] = ..., behind: _Optional[_Iterable[_Union[Behind, _Mapping]]] = ...) -> None: ...

class Behind(_message.Message):
    __slots__ = ("name", "acked_revision", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACKED_REVISION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    acked_revision: int
    reason: str
    def __init__(self, name: _Optional[str] = ..., acked_revision: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ShowRootsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StageRootRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ActivateRootRequest(_message.Message):
    __slots__ = ("force",)
    FORCE_FIELD_NUMBER: _ClassVar[int]
    force: bool
    def __init__(self, force: _Optional[bool] = ...) -> None: ...

class RetireRootRequest(_message.Message):
    __slots__ = ("force",)
    FORCE_FIELD_NUMBER: _ClassVar[int]
    force: bool
    def __init__(self, force: _Optional[bool] = ...) -> None: ...

class MeshRoot(_message.Message):
    __slots__ = ("fingerprint", "state", "not_after", "key_here")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    KEY_HERE_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    state: str
    not_after: int
    key_here: bool
    def __init__(self, fingerprint: _Optional[str] = ..., state: _Optional[str] = ..., not_after: _Optional[int] = ..., key_here: _Optional[bool] = ...) -> None: ...

class RootsState(_message.Message):
    __slots__ = ("roots", "controllers", "agents", "members", "records", "tokens")
    class Member(_message.Message):
        __slots__ = ("network", "name", "id", "online")
        NETWORK_FIELD_NUMBER: _ClassVar[int]
        NAME_FIELD_NUMBER: _ClassVar[int]
        ID_FIELD_NUMBER: _ClassVar[int]
        ONLINE_FIELD_NUMBER: _ClassVar[int]
        network: str
        name: str
        id: str
        online: bool
        def __init__(self, network: _Optional[str] = ..., name: _Optional[str] = ..., id: _Optional[str] = ..., online: _Optional[bool] = ...) -> None: ...
    ROOTS_FIELD_NUMBER: _ClassVar[int]
    CONTROLLERS_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    roots: _containers.RepeatedCompositeFieldContainer[MeshRoot]
    controllers: _containers.RepeatedScalarFieldContainer[str]
    agents: _containers.RepeatedCompositeFieldContainer[Behind]
    members: _containers.RepeatedCompositeFieldContainer[RootsState.Member]
    records: int
    tokens: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, roots: _Optional[_Iterable[_Union[MeshRoot, _Mapping]]] = ..., controllers: _Optional[_Iterable[str]] = ..., agents: _Optional[_Iterable[_Union[Behind, _Mapping]]] = ..., members: _Optional[_Iterable[_Union[RootsState.Member, _Mapping]]] = ..., records: _Optional[int] = ..., tokens: _Optional[_Iterable[str]] = ...) -> None: ...

class ListControllersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListControllersReply(_message.Message):
    __slots__ = ("controllers",)
    CONTROLLERS_FIELD_NUMBER: _ClassVar[int]
    controllers: _containers.RepeatedCompositeFieldContainer[Controller]
    def __init__(self, controllers: _Optional[_Iterable[_Union[Controller, _Mapping]]] = ...) -> None: ...

class Controller(_message.Message):
    __slots__ = ("id", "mesh", "join", "here", "unanswered", "agents", "revision", "since", "version", "problems")
    ID_FIELD_NUMBER: _ClassVar[int]
    MESH_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    HERE_FIELD_NUMBER: _ClassVar[int]
    UNANSWERED_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    id: str
    mesh: _containers.RepeatedScalarFieldContainer[str]
    join: _containers.RepeatedScalarFieldContainer[str]
    here: bool
    unanswered: str
    agents: int
    revision: int
    since: int
    version: str
    problems: _containers.RepeatedCompositeFieldContainer[_mesh_pb2.Problem]
    def __init__(self, id: _Optional[str] = ..., mesh: _Optional[_Iterable[str]] = ..., join: _Optional[_Iterable[str]] = ..., here: _Optional[bool] = ..., unanswered: _Optional[str] = ..., agents: _Optional[int] = ..., revision: _Optional[int] = ..., since: _Optional[int] = ..., version: _Optional[str] = ..., problems: _Optional[_Iterable[_Union[_mesh_pb2.Problem, _Mapping]]] = ...) -> None: ...
