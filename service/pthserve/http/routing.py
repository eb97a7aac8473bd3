"""Routing: a route, and what the schema says of it, put together when somebody asks for the schema."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from starlette import routing
from starlette.routing import Match
from starlette.types import Scope

Describe = Callable[[], Mapping[str, Any]]
"""The fields of a route's entry in the schema, as FastAPI's `add_api_route` takes them."""


class Route(routing.Route):
    """A route whose function takes the request and returns the response, with nothing in between.

    methods: those, and not HEAD where it is not among them. describe: without one it is not in the schema.
    public: whether it asks for no API key and takes no token of the rate limit: probes, metrics, and what is
    the same for any model.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        methods: Collection[str] = ("GET",),
        describe: Describe | None = None,
        *,
        public: bool = False,
    ) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.methods = set(methods)
        self.describe = describe
        self.public = public

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the route is meant, and what that adds to `scope`: the route too, for logs and metrics."""
        match, found = super().matches(scope)
        return match, {**found, "route": self} if match is not Match.NONE else found


def schema(routes: Iterable[routing.BaseRoute]) -> Mapping[str, Any]:
    """The OpenAPI document of those of `routes` that describe themselves."""
    from pthserve.http.openapi import Described, document

    return document(
        Described(route.path, route.endpoint, sorted(route.methods or ()), route.describe())
        for route in routes
        if isinstance(route, Route) and route.describe is not None
    )


def plain(
    path: str, endpoint: Callable[..., Any], methods: Collection[str] = ("GET",), *, public: bool = False
) -> Route:
    """A route that `openapi.PLAIN` describes."""

    def describe() -> Mapping[str, Any]:
        from pthserve.http.openapi import PLAIN

        return PLAIN[path]

    return Route(path, endpoint, methods, describe, public=public)
