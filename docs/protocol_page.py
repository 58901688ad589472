"""Writes docs/reference/protocol.md: every call, message and enum of protos/, with the comments in the .proto files."""

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

[protocol.md](../protocol.md) explains in which order the calls are made. The package is `pluralllm.v1`, proto3, over gRPC;
resource names are paths (`runs/RUN/rounds/NUMBER`). A repeatable call may be sent again with the same request: it has the same
result as one call. Refusals are the codes of [errors.md](errors.md) that a call may answer with.

"""
# Field numbers of descriptor.proto; the path that says where a comment belongs consists of them.
MESSAGE, ENUM, SERVICE, FIELD, METHOD, VALUE = 4, 5, 6, 2, 2, 2
Comments = Mapping[tuple[int, ...], str]


def protocol_page() -> str:
    files = [file for file in described().file if file.package == "pluralllm.v1"]
    comments = {file.name: comments_of(file) for file in files}
    sections = [section for file in files for section in _services(file, comments[file.name])]
    sections.append("## Messages\n")
    sections += [section for file in files for section in _messages(file, comments[file.name])]
    sections.append("## Enums\n")
    sections += [section for file in files for section in _enums(file, comments[file.name])]
    return HEAD + "\n".join(sections)


def described() -> FileDescriptorSet:
    """Returns the descriptors of all .proto files in protos/, with the comments of the files."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "image"
        files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("pluralllm/v1/*.proto"))
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", "--include_source_info"]
        subprocess.run([*command, f"--descriptor_set_out={out}", *files], cwd=PROTOS, check=True, timeout=60)  # noqa: S603
        return FileDescriptorSet.FromString(out.read_bytes())


def comments_of(file: FileDescriptorProto) -> Comments:
    """Returns the comments of a .proto file by the path of the described element in the file's descriptor.

    A comment stands above its element or, if there is none above, behind it.
    """
    locations = ((tuple(location.path), location) for location in file.source_code_info.location)
    return {
        path: re.sub(r"\n ", "\n", (location.leading_comments or location.trailing_comments).strip())
        for path, location in locations
    }


def _services(file: FileDescriptorProto, comments: Comments) -> Iterator[str]:
    for number, service in enumerate(file.service):
        rows = (
            (f"`{method.name}`", *_sides(method), comments.get((SERVICE, number, METHOD, at), ""))
            for at, method in enumerate(service.method)
        )
        meaning = comments.get((SERVICE, number), "")
        yield f"## {service.name}\n\n{meaning}\n\n{table(('call', 'request', 'answer', 'meaning'), rows)}"


def _sides(method: MethodDescriptorProto) -> tuple[str, str]:
    request, answer = (_link(name) for name in (method.input_type, method.output_type))
    return f"{'stream of ' * method.client_streaming}{request}", f"{'stream of ' * method.server_streaming}{answer}"


def _messages(file: FileDescriptorProto, comments: Comments) -> Iterator[str]:
    for number, message in enumerate(file.message_type):
        yield from _message(message, (MESSAGE, number), comments, message.name)


def _message(message: DescriptorProto, path: tuple[int, ...], comments: Comments, name: str) -> Iterator[str]:
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    rows = (
        (f"`{field.name}`", _type(message, field, entries), comments.get((*path, FIELD, at), ""))
        for at, field in enumerate(message.field)
    )
    fields = table(("field", "type", "meaning"), rows) if message.field else "No fields.\n"
    meaning = comments.get(path, "")
    yield f"### {name}\n\n{meaning}\n\n{fields}"


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


def _enums(file: FileDescriptorProto, comments: Comments) -> Iterator[str]:
    for number, enum in enumerate(file.enum_type):
        rows = (
            (f"`{value.name}`", str(value.number), comments.get((ENUM, number, VALUE, at), ""))
            for at, value in enumerate(enum.value)
        )
        meaning = comments.get((ENUM, number), "")
        yield f"### {enum.name}\n\n{meaning}\n\n{table(('value', 'number', 'meaning'), rows)}"
