"""A client of an app, without a socket between them."""

import asyncio
from typing import Any

import httpx
from starlette.types import ASGIApp


class Client:
    """Asks `app`, on an event loop that lives as long as the client does."""

    def __init__(self, app: ASGIApp) -> None:
        self.runner = asyncio.Runner()
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.run(self._client.aclose())
        self.runner.close()

    def request(self, method: str, path: str, **sent: Any) -> httpx.Response:
        return self.runner.run(self._client.request(method, path, **sent))

    def get(self, path: str, **sent: Any) -> httpx.Response:
        return self.request("GET", path, **sent)

    def post(self, path: str, **sent: Any) -> httpx.Response:
        return self.request("POST", path, **sent)
