"""docs/reference/protocol.md: every call, message and enum of protos/, with what the .proto files say of them."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)
from tables import table

PROTOS = Path(__file__).parents[1] / "protos"
HEAD = """# The protocol, call by call

How the calls follow each other: [protocol.md](../protocol.md). Package `pluralllm.v1`, proto3, over gRPC;
names of things are paths (`runs/RUN/rounds/NUMBER`).

"""
# Field numbers of descriptor.proto, of which the paths of comments are made.
MESSAGE, ENUM, SERVICE, FIELD, METHOD, VALUE = 4, 5, 6, 2, 2, 2
Comments = Mapping[tuple[int, ...], str]


def protocol_page() -> str:
    files = [file for file in described().file if file.package == "pluralllm.v1"]
    said = {file.name: comments_of(file) for file in files}
    parts = [part for file in files for part in _services(file, said[file.name])]
    parts.append("## Messages\n")
    parts += [part for file in files for part in _messages(file, said[file.name])]
    parts.append("## Enums\n")
    parts += [part for file in files for part in _enums(file, said[file.name])]
    return HEAD + "\n".join(parts)


def described() -> FileDescriptorSet:
    """The .proto files, comments included."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "image"
        files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("pluralllm/v1/*.proto"))
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", "--include_source_info"]
        subprocess.run([*command, f"--descriptor_set_out={out}", *files], cwd=PROTOS, check=True, timeout=60)  # noqa: S603
        return FileDescriptorSet.FromString(out.read_bytes())


def comments_of(file: FileDescriptorProto) -> Comments:
    """By place in the file: what stands above, else behind."""
    places = ((tuple(each.path), each) for each in file.source_code_info.location)
    return {
        path: re.sub(r"\n ", "\n", (each.leading_comments or each.trailing_comments).strip()) for path, each in places
    }


def _services(file: FileDescriptorProto, said: Comments) -> Iterator[str]:
    for number, service in enumerate(file.service):
        rows = (
            (f"`{method.name}`", *_sides(method), said.get((SERVICE, number, METHOD, at), ""))
            for at, method in enumerate(service.method)
        )
        told = said.get((SERVICE, number), "")
        yield f"## {service.name}\n\n{told}\n\n{table(('call', 'request', 'answer', 'meaning'), rows)}"


def _sides(method: MethodDescriptorProto) -> tuple[str, str]:
    asked, told = (_link(name) for name in (method.input_type, method.output_type))
    return f"{'stream of ' * method.client_streaming}{asked}", f"{'stream of ' * method.server_streaming}{told}"


def _messages(file: FileDescriptorProto, said: Comments) -> Iterator[str]:
    for number, message in enumerate(file.message_type):
        yield from _message(message, (MESSAGE, number), said, message.name)


def _message(message: DescriptorProto, place: tuple[int, ...], said: Comments, name: str) -> Iterator[str]:
    entries = {each.name: each for each in message.nested_type if each.options.map_entry}
    rows = (
        (f"`{field.name}`", _type(message, field, entries), said.get((*place, FIELD, at), ""))
        for at, field in enumerate(message.field)
    )
    fields = table(("field", "type", "meaning"), rows) if message.field else "No fields.\n"
    told = said.get(place, "")
    yield f"### {name}\n\n{told}\n\n{fields}"


def _type(message: DescriptorProto, field: FieldDescriptorProto, entries: Mapping[str, DescriptorProto]) -> str:
    entry = entries.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        key, value = (_plain_type(each) for each in entry.field)
        return f"map of {key} to {value}"
    kind = _plain_type(field)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    if field.HasField("oneof_index"):
        return (
            f"optional {kind}"
            if field.proto3_optional
            else f"one of {message.oneof_decl[field.oneof_index].name}: {kind}"
        )
    return kind


def _plain_type(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _link(field.type_name)
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _link(type_name: str) -> str:
    name = type_name.rpartition(".")[2]
    return f"[{name}](#{name.lower()})" if type_name.startswith(".pluralllm.") else type_name.removeprefix(".")


def _enums(file: FileDescriptorProto, said: Comments) -> Iterator[str]:
    for number, enum in enumerate(file.enum_type):
        rows = (
            (f"`{value.name}`", str(value.number), said.get((ENUM, number, VALUE, at), ""))
            for at, value in enumerate(enum.value)
        )
        told = said.get((ENUM, number), "")
        yield f"### {enum.name}\n\n{told}\n\n{table(('value', 'number', 'meaning'), rows)}"
