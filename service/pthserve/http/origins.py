"""Origins: the allowed values of the Host header, and protection from web pages of other sites.

A browser on the same machine or network can send requests to the service for any page that it shows. Such a
page must not read responses by making its own host name resolve to the service's address (DNS rebinding), and
must not change anything with requests that a browser sends without asking (cross-site request forgery).
"""

from functools import lru_cache
from ipaddress import ip_address

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from pthserve.errors import CrossOrigin, PthserveError, WrongHost
from pthserve.http.problems import answer
from pthserve.settings import Settings, listed

LONGEST = 255
"""Maximum number of characters of a Host header: a name has up to 253."""
_SAFE = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing. A browser may send them for any page: the page cannot read the response."""
_METHODS = ("GET", "HEAD", "POST")
_SENT = (
    "Authorization",
    "Inference-Header-Content-Length",
    "Traceparent",
    "Tracestate",
    "X-API-Key",
    "X-Request-Id",
    "X-Request-Timeout",
)
"""Request headers that a page of an allowed origin may set, in addition to those that CORS always allows."""
_READ = ("Inference-Header-Content-Length", "Retry-After", "X-Model-Digest", "X-Request-Id")
"""Response headers that it may read, in addition to those that CORS always allows."""


def protected(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Wrap `app` in the checks of Host and origin that `settings` state, and in CORS, preflight included."""
    allowed = listed(settings.cors_origins)
    if allowed:
        app = CORSMiddleware(app, allowed, _METHODS, _SENT, expose_headers=_READ)
    return Origins(app, _names(settings), allowed)


class Origins:
    """ASGI middleware that refuses requests to unknown hosts, and from pages of other sites.

    The rules for pages are those of Go's http.CrossOriginProtection: `Sec-Fetch-Site` decides; if it is
    missing, `Origin` must match `Host`; a request without either header does not come from a browser.

    Args:
        names: Host names that are allowed in addition to IP addresses and localhost, `*.` before a name for
            all its subdomains; None allows every host.
        origins: Origins whose pages may send requests that change something; `*` for all.
    """

    def __init__(
        self, app: ASGIApp, names: tuple[str, ...] | None = None, origins: tuple[str, ...] = ()
    ) -> None:
        self._app = app
        self._names = names
        self._origins = {origin.encode() for origin in origins}
        self._answers_to = lru_cache(1024)(self._is_ours)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except PthserveError as error:
                await answer(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        host = origin = site = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
                if self._names is not None and (len(value) > LONGEST or not self._answers_to(value)):
                    raise WrongHost(
                        "this service does not answer to the host in the request's Host header; name it in "
                        "the setting allowed_hosts"
                    )
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        if scope["method"] in _SAFE or (site is None and origin is None):
            return
        same = site in (b"same-origin", b"none") if site is not None else _host_of(origin) == host
        if not same and not self._origins & {origin, b"*"}:
            raise CrossOrigin(
                "this request comes from a page of another site; to allow it, name the page's origin in the "
                "setting cors_origins"
            )

    def _is_ours(self, host: bytes) -> bool:
        text = host.decode("latin-1").lower()
        name = (text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]).rstrip(".")
        if name == "localhost" or name.endswith(".localhost") or _is_address(name):
            return True  # DNS cannot make these resolve to another address
        return any(
            name.endswith(ours[1:]) if ours.startswith("*.") else name == ours for ours in self._names or ()
        )


def _names(settings: Settings) -> tuple[str, ...] | None:
    """Return the host names in `allowed_hosts`; None if every host is allowed."""
    names = listed(settings.allowed_hosts)
    if not names:
        return () if _is_loopback(settings.host) else None
    return None if "*" in names else names


def _host_of(origin: bytes | None) -> bytes | None:
    return origin.partition(b"://")[2] if origin is not None else None


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)
