"""One example of each error of the tree, and of each bare status code of gRPC, as a caller gets them."""

from dataclasses import dataclass
from typing import Any

import grpc

from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.errors.tree import PluralError, fields_of, leaves

VALUES: dict[type, Any] = {str: "text", int: 7, float: 0.5}
ADDRESS = "127.0.0.1:1"


@dataclass(frozen=True, slots=True)
class Case:
    """An error, with the name of its class or of its status code."""

    name: str
    error: PluralError

    def __str__(self) -> str:
        return self.name


def example(leaf: type[PluralError]) -> PluralError:
    """Returns an error of this class with some value in each field."""
    return leaf(**{name: VALUES[kind] for name, kind in fields_of(leaf).items()})


def failed_call(code: grpc.StatusCode, details: str = "", metadata: tuple[Any, ...] = ()) -> grpc.RpcError:
    """Returns the error that gRPC raises for a call that ended with this status."""

    class Failed(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return code

        def details(self) -> str:
            return details

        def trailing_metadata(self) -> tuple[Any, ...]:
            return metadata

    return Failed()


def of_code(code: grpc.StatusCode) -> PluralError:
    """Returns the error that a caller gets for a status without an error of the tree."""
    return from_rpc_error(failed_call(code, "a proxy"), ADDRESS)


EVERY_LEAF = [Case(leaf.__name__, example(leaf)) for leaf in leaves().values()]
EVERY_BARE_CODE = [Case(code.name, of_code(code)) for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
