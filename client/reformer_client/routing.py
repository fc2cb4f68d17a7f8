"""Calls about a document find the server that has it: gRPC's own ring hash, where no proxy does it."""

import json
import os
from typing import Literal

Routing = Literal["document"]
"""How a server is chosen, where there are several."""

VARIABLE = "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"
"""Without it, gRPC's ring hash ignores that it should hash a header, and fails every call."""
RING_SIZE = 4096  # the most that gRPC allows: the more, the more even are the shares


def service_config(routing: Routing) -> str:
    """For the channel. Raises ValueError if there is no such routing, or gRPC isn't told that it may do it."""
    if routing != "document":
        raise ValueError(f'routing must be None or "document", but is {routing!r}')
    if os.environ.get(VARIABLE, "").lower() not in ("1", "t", "true", "y", "yes"):  # what gRPC takes for a yes
        raise ValueError(
            f'routing="document" needs {VARIABLE}=true in the environment before the client is made: gRPC calls its '
            "hashing of a header experimental, and without it, every call would fail"
        )
    ring = {"requestHashHeader": "x-document-id", "minRingSize": RING_SIZE, "maxRingSize": RING_SIZE}
    config = {
        "loadBalancingConfig": [{"ring_hash_experimental": ring}],
        "healthCheckConfig": {"serviceName": ""},  # a server that drains gets no new calls
    }
    return json.dumps(config)
