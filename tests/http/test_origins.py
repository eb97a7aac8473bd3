"""Browsers: which names the service answers to, and what a page of another site may have a browser send."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from pydantic import ValidationError

from pthserve.http.app import create_app
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings

from ..asgi import Client
from ..http_service import Service, serving
from ..http_wire import connect, read
from ..serving.squares import png

SHOP, EVIL = "https://shop.example", "https://evil.example"
LOADS = "/v2/repository/models/squares/load"


def predict(client: httpx.Client, **headers: str) -> httpx.Response:
    return client.post("/predict", files={"image": png()}, headers=headers)


def answers_to(client: httpx.Client, host: str) -> bool:
    reply = client.get("/info", headers={"Host": host})
    if reply.status_code == 421:
        assert "allowed_hosts" in reply.json()["error"]
    else:
        assert reply.status_code == 200
    return reply.status_code == 200


@contextmanager
def app(**settings: str) -> Iterator[Client]:
    """A client of the app that these settings make, without a port."""
    chosen = Settings(**settings)
    predictor = Predictor(chosen)
    with Client(create_app(predictor, chosen)) as client:
        yield client
    predictor.close()


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8000", "LOCALHOST:1", "localhost.", "cats.localhost:8000"),
        *("127.0.0.1", "127.0.0.1:9", "[::1]", "[::1]:8000", "192.0.2.1:80", "[2001:db8::1]"),
    ],
)
def test_localhost_and_addresses_are_names_of_any_service(client: httpx.Client, host: str) -> None:
    assert answers_to(client, host)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "evil-localhost", "x"),
        *("127.0.0.1.evil.example", "[evil.example]", "127.0.0.1@evil.example", "2130706433", "0x7f.1"),
        "e" * 2000,
    ],
)
def test_a_service_on_a_loopback_address_answers_to_no_other_name(client: httpx.Client, host: str) -> None:
    assert not answers_to(client, host)


def test_every_route_and_method_is_refused_under_another_name(service: Service) -> None:
    host = {"Host": "evil.example"}
    for path in ("/", "/livez", "/metrics", "/predict", "/openapi.json", "/v2", "/nowhere"):
        for method in ("GET", "POST", "OPTIONS"):
            assert service.client.request(method, path, headers=host).status_code == 421


def test_a_client_without_a_host_is_no_browser_and_answered(service: Service) -> None:
    with connect(service) as connection:
        connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert read(connection).code == 200


def test_other_names_are_answered_to_where_the_setting_has_them() -> None:
    with serving(allowed_hosts="cats.example, *.Shop.example") as service:
        for host in ("cats.example:80", "CATS.example", "a.shop.example", "a.b.shop.example", "localhost"):
            assert answers_to(service.client, host)
        for host in ("dogs.example", "a.cats.example", "shop.example", "evilshop.example"):
            assert not answers_to(service.client, host)


@pytest.mark.parametrize(
    ("settings", "any_name"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "192.0.2.1"}, True),
        ({"host": "0.0.0.0", "allowed_hosts": "cats.example"}, False),
        ({"host": "127.0.0.1", "allowed_hosts": "*"}, True),
        ({"host": "127.0.0.1"}, False),
        ({"host": "127.1.2.3"}, False),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
    ],
)
def test_any_name_is_answered_to_beyond_loopback_unless_names_are_given(
    settings: dict[str, str], any_name: bool
) -> None:
    with app(**settings) as client:
        assert client.get("/livez", headers={"Host": "dogs.example"}).status_code == (
            200 if any_name else 421
        )
        assert client.get("/livez", headers={"Host": "10.1.2.3:8000"}).status_code == 200  # a kubelet's probe


def test_the_port_for_metrics_answers_to_the_same_names() -> None:
    with serving(metrics_port=0) as service:
        url = f"http://127.0.0.1:{service.server.ports['metrics']}/metrics"
        assert httpx.get(url).status_code == 200
        assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 421


# --- pages of other sites ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://HOST"},
        {"Origin": "http://HOST", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        # A proxy changed the Host, and the browser says all the same that it is the page's own.
        {"Origin": "https://cats.example", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_the_service_s_own_page_and_whoever_is_no_browser_may_send(
    client: httpx.Client, headers: dict[str, str]
) -> None:
    own = {name: value.replace("HOST", client.base_url.netloc.decode()) for name, value in headers.items()}
    assert predict(client, **own).status_code == 200


FOREIGN = [
    {"Origin": EVIL},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": EVIL, "Sec-Fetch-Site": "cross-site"},
    {"Origin": EVIL, "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.slow
@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("path", ["/predict", "/explain", "/v2/models/squares/infer", LOADS, "/nowhere"])
def test_a_page_of_another_site_may_send_nothing_that_takes_work_or_changes_something(
    service: Service, path: str, headers: dict[str, str]
) -> None:
    loads = service.metric('pthserve_model_loads_total{result="ok"}')
    simple = {**headers, "Content-Type": "text/plain"}  # a browser asks nobody before it sends this
    reply = service.client.post(path, content=b"", headers=simple)
    assert reply.status_code == 403
    assert "cors_origins" in reply.json()["error"]
    assert service.metric('pthserve_model_loads_total{result="ok"}') == loads


def test_a_page_of_another_site_cannot_read_an_answer(client: httpx.Client) -> None:
    for path in ("/info", "/metrics", "/v2"):
        reply = client.get(path, headers={"Origin": EVIL, "Sec-Fetch-Site": "cross-site"})
        assert reply.status_code == 200
        assert not [name for name in reply.headers if name.startswith("access-control-")]
    preflight = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
    reply = client.options("/predict", headers=preflight)
    assert reply.status_code == 405
    assert not [name for name in reply.headers if name.startswith("access-control-")]


@pytest.fixture(scope="module")
def open_to_the_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("a-key\n")
    with serving(cors_origins=SHOP, api_keys=keys) as service:
        yield service


@pytest.mark.parametrize(
    ("path", "method"),
    [("/predict", "POST"), ("/explain", "POST"), ("/info", "GET"), ("/v2/models/squares/infer", "POST")],
)
def test_a_browser_is_told_that_an_allowed_page_may_send(
    open_to_the_shop: Service, path: str, method: str
) -> None:
    asked = {
        "Origin": SHOP,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,inference-header-content-length",
    }
    reply = open_to_the_shop.client.options(path, headers=asked)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == SHOP
    assert "Origin" in reply.headers["vary"]
    assert "access-control-allow-credentials" not in reply.headers
    other = open_to_the_shop.client.options(path, headers={**asked, "Origin": EVIL})
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers


def test_an_allowed_page_reads_answers_and_errors_and_no_other_does(open_to_the_shop: Service) -> None:
    client = open_to_the_shop.client
    cross = {"Origin": SHOP, "Sec-Fetch-Site": "cross-site"}
    for headers, code in (({"X-API-Key": "a-key"}, 200), ({"X-API-Key": "wrong"}, 401)):
        reply = predict(client, **cross, **headers)
        assert reply.status_code == code
        assert reply.headers["access-control-allow-origin"] == SHOP
        assert "X-Request-Id" in reply.headers["access-control-expose-headers"]
    reply = predict(client, **{**cross, "Origin": EVIL, "X-API-Key": "a-key"})
    assert reply.status_code == 403
    assert "access-control-allow-origin" not in reply.headers


def test_any_page_may_send_where_the_setting_says_so() -> None:
    with serving(cors_origins="*") as service:
        for origin in (EVIL, "null"):
            reply = predict(service.client, Origin=origin)
            assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, "*")


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(
            ("allowed_hosts", value)
            for value in ("", "a,,b", "http://a.example", "a.example:80", "a*.example")
        ),
        *(("cors_origins", value) for value in ("", "shop.example", "https://shop.example/", "https://*.a")),
    ],
)
def test_a_name_that_could_never_match_is_refused_with_the_settings(setting: str, value: str) -> None:
    with pytest.raises(ValidationError, match="separated by commas"):
        Settings(**{setting: value})
