"""Site: the web pages for people and their files. They load nothing from other servers."""

import gzip
import hashlib
from importlib import resources

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from pthserve.errors import NotFound

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS = {
    # Only files of this service; `blob:` is for the images that a person selects on the page.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
}
PAGES = {"/": "index.html", "/docs": "docs.html"}


class Page:
    """The files, in memory. The pages refer to the others by a path with a version that changes with them."""

    def __init__(self) -> None:
        folder = resources.files("pthserve.http") / "site_files"
        self.files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        digest = hashlib.sha256(b"".join(self.files[name] for name in sorted(self.files)))
        self.version = digest.hexdigest()[:16]
        for name in PAGES.values():
            self.files[name] = self.files[name].replace(b'"page/', f'"page/{self.version}/'.encode())
        self._packed = {name: gzip.compress(data, mtime=0) for name, data in self.files.items()}

    def page(self, name: str, request: Request) -> Response:
        """Return the page in the file `name`, or 304 if the client has the current version."""
        headers = {"ETag": f'W/"{self.version}"', "Cache-Control": "no-cache"}
        if f'"{self.version}"' in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=HEADERS | headers)
        return self._file(name, request, headers)

    def file(self, version: str, name: str, request: Request) -> Response:
        """Return a file of the pages, which may be cached forever; raises NotFound."""
        if version != self.version or name not in self.files:
            raise NotFound("this file does not exist; reload the page")
        return self._file(name, request, {"Cache-Control": "public, max-age=31536000, immutable"})

    def _file(self, name: str, request: Request, headers: dict[str, str]) -> Response:
        headers = HEADERS | headers | {"Content-Type": TYPES[name.rpartition(".")[2]]}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(self._packed[name], headers=headers | {"Content-Encoding": "gzip"})
        return Response(self.files[name], headers=headers)


def router() -> APIRouter:
    """Return the routes of the pages; they are not in the schema."""
    routes = APIRouter(include_in_schema=False)
    pages = Page()

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return pages.page(PAGES["/"], request)

    @routes.api_route("/docs", methods=["GET", "HEAD"])
    async def docs(request: Request) -> Response:
        return pages.page(PAGES["/docs"], request)

    @routes.api_route("/page/{version}/{name}", methods=["GET", "HEAD"])
    async def file(request: Request) -> Response:
        return pages.file(request.path_params["version"], request.path_params["name"], request)

    return routes
