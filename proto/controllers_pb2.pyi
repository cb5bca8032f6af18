from overmesh.proto import admin_pb2 as _admin_pb2
from overmesh.proto import mesh_pb2 as _mesh_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("version", "revision", "agents", "since", "problems")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    version: str
    revision: int
    agents: int
    since: int
    problems: _containers.RepeatedCompositeFieldContainer[_mesh_pb2.Problem]
    def __init__(self, version: _Optional[str] = ..., revision: _Optional[int] = ..., agents: _Optional[int] = ..., since: _Optional[int] = ..., problems: _Optional[_Iterable[_Union[_mesh_pb2.Problem, _Mapping]]] = ...) -> None: ...

class SightingsRequest(_message.Message):
    __slots__ = ("network", "node_id")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    network: str
    node_id: str
    def __init__(self, network: _Optional[str] = ..., node_id: _Optional[str] = ...) -> None: ...

class SightingsReply(_message.Message):
    __slots__ = ("sightings",)
    SIGHTINGS_FIELD_NUMBER: _ClassVar[int]
    sightings: _containers.RepeatedCompositeFieldContainer[Sighting]
    def __init__(self, sightings: _Optional[_Iterable[_Union[Sighting, _Mapping]]] = ...) -> None: ...

class Sighting(_message.Message):
    __slots__ = ("node_id", "online", "last_seen", "acked_revision", "in_step", "version", "host_id", "problems")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ONLINE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    ACKED_REVISION_FIELD_NUMBER: _ClassVar[int]
    IN_STEP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    online: bool
    last_seen: float
    acked_revision: int
    in_step: bool
    version: str
    host_id: str
    problems: _containers.RepeatedCompositeFieldContainer[_mesh_pb2.Problem]
    def __init__(self, node_id: _Optional[str] = ..., online: _Optional[bool] = ..., last_seen: _Optional[float] = ..., acked_revision: _Optional[int] = ..., in_step: _Optional[bool] = ..., version: _Optional[str] = ..., host_id: _Optional[str] = ..., problems: _Optional[_Iterable[_Union[_mesh_pb2.Problem, _Mapping]]] = ...) -> None: ...
