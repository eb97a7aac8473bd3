"""What of a protobuf descriptor can be seen on the wire."""

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from pthserve.protos import inference_pb2


def of(file: FileDescriptorProto) -> dict[tuple[str, ...], Any]:
    """Each procedure by service and name, and each field by message and name: what has to be alike."""
    package = f".{file.package}"
    found: dict[tuple[str, ...], Any] = {
        (f"{package}.{service.name}", method.name): (
            method.input_type,
            method.output_type,
            method.client_streaming,
            method.server_streaming,
        )
        for service in file.service
        for method in service.method
    }
    for message in file.message_type:
        found.update(_fields(package, message))
    return found


def _fields(place: str, message: DescriptorProto) -> Iterator[tuple[tuple[str, str], Any]]:
    place = f"{place}.{message.name}"
    for field in message.field:
        choice = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        yield (place, field.name), (field.number, field.type, field.label, field.type_name, choice)
    for nested in message.nested_type:
        yield from _fields(place, nested)


def ours() -> dict[tuple[str, ...], Any]:
    """`of` our own descriptor."""
    return of(FileDescriptorProto.FromString(inference_pb2.DESCRIPTOR.serialized_pb))
