"""Who is calling. The one place that decides it.

Until members have certificates the client's id is metadata of the call, believed because the port is on loopback only.
"""

import grpc

from pluralllm.common.errors import Unidentified
from pluralllm.common.ids import ID_HELP, ClientId, is_id
from pluralllm.common.wire import CLIENT_ID_KEY


def caller(context: grpc.aio.ServicerContext) -> ClientId:  # type: ignore[type-arg]
    """The client at the other end of a call. Raises Unidentified."""
    for key, value in context.invocation_metadata() or ():
        if key == CLIENT_ID_KEY:
            if isinstance(value, str) and is_id(value):
                return ClientId(value)
            raise Unidentified(problem=f"{CLIENT_ID_KEY} must be {ID_HELP}")
    raise Unidentified(problem=f"the call has no {CLIENT_ID_KEY} metadata")
