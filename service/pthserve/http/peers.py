"""Peers: send a request to all pods of the service, of which one knows the answer that it is about."""

import asyncio
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from pthserve.errors import Unavailable
from pthserve.http.problems import JSON
from pthserve.serving.background import in_background

if TYPE_CHECKING:
    import httpx

HEADER = "x-pthserve-forwarded"
"""Marks a request that another pod has forwarded; it is not forwarded again."""
MAX_PODS = 100
"""Maximum number of pods that are asked."""
MAX_REPLY = 64 * 2**10
"""Maximum size in bytes of a pod's response."""
TIMEOUT = 10.0
"""Maximum time in seconds without a byte."""
_FORWARDED = ("authorization", "x-api-key")


class Peers:
    """The pods at the addresses that the host of `url` resolves to."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: httpx.AsyncClient | None = None

    async def ask(self, request: Request, body: bytes, seconds: float) -> Response | None:
        """Send `body` to the path of `request` on all pods at once, with the API key of its client.

        Args:
            seconds: Maximum time for all of it.

        Returns:
            The response of the pod that knows what the request is about; None if no pod does.

        Raises:
            Unavailable: No pod knows it, and not all of them could be asked.
        """
        if self._client is None:
            self._client = await in_background(_client)
        headers = {name: value for name in _FORWARDED if (value := request.headers.get(name))}
        headers |= {HEADER: "1", "content-type": JSON}
        try:
            async with asyncio.timeout(seconds):
                urls = await self._addresses(
                    request.url.path.removeprefix(request.scope.get("root_path", ""))
                )
                client = self._client
                replies = await asyncio.gather(*(_reply(client, url, body, headers) for url in urls))
        except (TimeoutError, OSError):
            replies = [None]
        for reply in replies:
            if reply is not None and reply.status_code in (200, 400):
                return reply
        if any(reply is None or reply.status_code != 404 for reply in replies):
            raise Unavailable("this process did not give that answer, and not all others could be asked")
        return None

    async def _addresses(self, path: str) -> "list[tuple[httpx.URL, str]]":
        """Return the URL at each pod's address, with the name of the host; raises OSError."""
        import httpx

        url = httpx.URL(self._url)
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
        hosts = sorted({str(address[4][0]) for address in found})[:MAX_PODS]
        prefix = url.path.rstrip("/")
        return [(url.copy_with(host=host, port=port, path=f"{prefix}{path}"), url.host) for host in hosts]


async def _reply(
    client: "httpx.AsyncClient", at: "tuple[httpx.URL, str]", body: bytes, headers: Mapping[str, str]
) -> Response | None:
    """Return the response of one pod; None if there is none."""
    import httpx

    url, name = at
    named = {**headers, "host": f"{name}:{url.port}" if url.port else name}
    try:
        reply = await client.post(url, content=body, headers=named, extensions={"sni_hostname": name})
    except httpx.HTTPError:
        return None
    if len(reply.content) > MAX_REPLY:
        return None
    kept = {header: reply.headers[header] for header in ("x-model-digest",) if header in reply.headers}
    return Response(reply.content, reply.status_code, kept, media_type=JSON)


def _client() -> "httpx.AsyncClient":
    import httpx  # imported only if there are peers

    limits = httpx.Limits(max_connections=MAX_PODS, max_keepalive_connections=0)
    return httpx.AsyncClient(limits=limits, timeout=TIMEOUT)
