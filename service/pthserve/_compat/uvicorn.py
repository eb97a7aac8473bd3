"""uvicorn: a server with an HTTP protocol of our own, and without uvicorn's signal handlers.

Written for uvicorn 0.54; `tests/test_server.py` covers all of it.
"""

import asyncio
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import uvicorn
from starlette.types import ASGIApp

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than at load balancers (nginx and the ALB of AWS: 60),
which would otherwise now and then send a request on a connection that is being closed."""


class Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to the process.

    uvicorn itself would end the process by the signal, not with exit code 0.
    """

    def __init__(self, app: ASGIApp, protocol: Callable[..., asyncio.BaseProtocol], deadline: float) -> None:
        """Configure a server.

        Args:
            app: The application.
            protocol: Makes the protocol of a connection from uvicorn's `Config` and `ServerState`.
            deadline: Seconds that requests get to finish when the server stops.
        """
        config: Any = uvicorn.Config(
            app,
            http=protocol,  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            headers=[("x-content-type-options", "nosniff")],
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=math.ceil(deadline),
        )
        super().__init__(config)

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Capture no signals."""
        return nullcontext()
