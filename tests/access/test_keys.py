"""API keys, rates and addresses: who is let in."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from pydantic import ValidationError

from pthserve.access import request_log
from pthserve.access.clients import Clients
from pthserve.access.guard import Guard
from pthserve.access.keys import CHECK_INTERVAL, MAX_BYTES, SETTLED, Keys
from pthserve.access.rate_limit import CLEANUP_SIZE, Rates
from pthserve.errors import PthserveError, RateLimited, Unauthorized
from pthserve.settings import Settings

from ..http_service import serving
from ..http_wire import connect, exchange, head, read
from ..serving.squares import png
from ..shared import until

KEYS = b"# of the shop\nalpha-key\n\n  beta-key \r\n"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_bytes(KEYS)
    return path


# --- keys -------------------------------------------------------------------------------------------------


def test_each_key_has_a_name_of_its_own_that_gives_nothing_away(file: Path) -> None:
    keys = Keys(file)
    names = {keys.owner([b"alpha-key"]), keys.owner([b"beta-key"])}
    assert len(names) == 2
    assert not any("key" in name for name in names)
    assert keys.owner([b"wrong", b"alpha-key"]) == keys.owner([b"alpha-key"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "offered", [[], [b""], [b"alpha-ke"], [b"alpha-key2"], [b"ALPHA-KEY"], [b"# of the shop"], [b"\xff"]]
)
def test_without_one_of_the_keys_nobody_is_let_in(file: Path, offered: list[bytes]) -> None:
    with pytest.raises(Unauthorized, match="API key"):
        Keys(file).owner(offered)


def test_no_key_is_held_in_the_clear(file: Path) -> None:
    assert b"alpha" not in repr(vars(Keys(file))).encode()


def test_keys_are_read_again_when_the_file_changes(file: Path, clock: Clock) -> None:
    keys = Keys(file, clock)
    file.write_bytes(b"gamma-key\n")
    clock.now += CHECK_INTERVAL
    assert keys.owner([b"gamma-key"])
    with pytest.raises(Unauthorized):
        keys.owner([b"alpha-key"])


def test_a_secret_that_kubernetes_swaps_is_read_again(tmp_path: Path, clock: Clock) -> None:
    for number, text in enumerate((b"old-key", b"new-key")):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "keys").write_bytes(text)
        os.utime(tmp_path / f"..{number}" / "keys", (1, 1))
    (tmp_path / "..data").symlink_to("..0")
    (tmp_path / "keys").symlink_to("..data/keys")
    keys = Keys(tmp_path / "keys", clock)
    assert keys.owner([b"old-key"])
    (tmp_path / "..data_tmp").symlink_to("..1")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    clock.now += CHECK_INTERVAL
    assert keys.owner([b"new-key"])


def test_keys_hold_while_their_file_is_gone_and_none_holds_once_it_is_empty(file: Path, clock: Clock) -> None:
    keys = Keys(file, clock)
    file.unlink()
    clock.now += CHECK_INTERVAL
    assert keys.owner([b"alpha-key"])
    file.write_bytes(b"")
    clock.now += CHECK_INTERVAL
    with pytest.raises(Unauthorized):
        keys.owner([b"alpha-key"])


@pytest.mark.parametrize("text", [None, b"", b"\n \n# nothing\n"])
def test_a_service_does_not_start_without_keys_where_it_was_to_have_some(
    tmp_path: Path, text: bytes | None
) -> None:
    if text is not None:
        (tmp_path / "keys").write_bytes(text)
    with pytest.raises(PthserveError, match="keys"):
        Guard(Settings(api_keys=tmp_path / "keys"))


def test_the_beginning_of_a_key_that_is_still_being_written_is_no_key(file: Path, clock: Clock) -> None:
    keys = Keys(file, clock)
    with file.open("wb") as written:
        written.write(b"gamma-key\ndelta-")
        written.flush()
        clock.now += CHECK_INTERVAL
        assert keys.owner([b"gamma-key"])
        for beginning in (b"delta-", b"delta"):
            with pytest.raises(Unauthorized):
                keys.owner([beginning])
        written.write(b"key\n")
    clock.now += CHECK_INTERVAL
    assert keys.owner([b"delta-key"])
    with pytest.raises(Unauthorized):
        keys.owner([b"delta-"])


def test_a_last_line_without_a_newline_is_a_key_once_the_file_stays_the_same(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys", Clock()
    file.write_bytes(b"alpha-key")
    keys = Keys(file, clock)
    with pytest.raises(Unauthorized):
        keys.owner([b"alpha-key"])
    clock.now += SETTLED
    assert keys.owner([b"alpha-key"])


def test_a_file_that_was_written_long_ago_is_whole_at_once(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "keys").write_bytes(b"alpha-key")
    os.utime(tmp_path / "keys", (1, 1))
    assert Keys(tmp_path / "keys", clock).owner([b"alpha-key"])


@contextmanager
def _pipe(path: Path) -> Iterator[None]:
    os.mkfifo(path)
    yield


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    path.mkdir()
    yield


@contextmanager
def _too_large(path: Path) -> Iterator[None]:
    path.write_bytes(b"k" * MAX_BYTES + b"\n")
    yield


@contextmanager
def _socket(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        yield


ODD = (_pipe, _folder, _too_large, _socket)


@pytest.mark.parametrize("make", ODD)
def test_what_is_no_file_of_a_sensible_size_holds_no_keys_and_nobody_up(
    make: type, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with make(tmp_path / "odd"), pytest.raises(PthserveError, match=r"regular file|larger than|is a folder"):
        Keys(tmp_path / "odd")
    (tmp_path / "keys").write_bytes(KEYS)
    keys = Keys(tmp_path / "keys", clock)
    (tmp_path / "keys").unlink()
    with make(tmp_path / "keys"):
        for _ in range(3):
            clock.now += CHECK_INTERVAL
            assert keys.owner([b"alpha-key"])
    assert len([line for line in caplog.messages if "the keys read before stay in use" in line]) == 1


# --- rates ------------------------------------------------------------------------------------------------


def test_a_client_may_send_its_rate_at_once_and_then_at_its_pace(clock: Clock) -> None:
    rates = Rates("5/second", clock)
    for _ in range(5):
        rates.take("me")
    with pytest.raises(RateLimited, match="5 per 1 second") as caught:
        rates.take("me")
    assert caught.value.retry_after == pytest.approx(0.2)
    clock.now += caught.value.retry_after
    rates.take("me")
    with pytest.raises(RateLimited):
        rates.take("me")
    clock.now += 3600
    for _ in range(5):
        rates.take("me")
    with pytest.raises(RateLimited):
        rates.take("me")


def test_over_time_no_more_is_let_in_than_the_rate_and_no_less(clock: Clock) -> None:
    rates = Rates("60/minute", clock)
    let_in = 0
    for _ in range(36_000):  # an hour of ten a second
        clock.now += 0.1
        try:
            rates.take("me")
            let_in += 1
        except RateLimited:
            pass
    assert 3600 <= let_in <= 3660


def test_one_client_s_haste_is_not_another_s(clock: Clock) -> None:
    rates = Rates("1/hour", clock)
    rates.take("me")
    rates.take("you")
    with pytest.raises(RateLimited):
        rates.take("me")


def test_clients_that_are_gone_are_forgotten(clock: Clock) -> None:
    rates = Rates("1/second", clock)
    for number in range(20 * CLEANUP_SIZE):
        clock.now += 0.01
        rates.take(str(number))
    assert len(rates._full) <= 2 * CLEANUP_SIZE


@pytest.mark.parametrize("limit", ["100/second", "10 per 2 minutes", "5/hour"])
def test_a_rate_is_written_as_people_do(limit: str) -> None:
    assert Settings(rate_limit=limit).rate_limit == limit
    Rates(limit)


@pytest.mark.parametrize(
    "limit", ["", "lots", "100", "100/fortnight", "0/second", "1/0 seconds", "-1/second", "9999999999/second"]
)
def test_a_rate_that_is_none_is_refused_with_the_settings(limit: str) -> None:
    with pytest.raises(ValidationError, match="such as 100/second"):
        Settings(rate_limit=limit)


# --- over HTTP --------------------------------------------------------------------------------------------


def predict(service: httpx.Client, **headers: str) -> httpx.Response:
    return service.post("/predict", files={"image": png()}, headers=headers)


@pytest.mark.slow
def test_a_service_with_keys_answers_whoever_has_one_and_probes_and_pages_without(file: Path) -> None:
    with serving(api_keys=file) as service:
        for headers in (
            {"Authorization": "Bearer alpha-key"},
            {"Authorization": "bearer  beta-key"},
            {"X-API-Key": "beta-key"},
            {"Authorization": "Basic eDp5", "X-API-Key": "alpha-key"},
        ):
            assert predict(service.client, **headers).status_code == 200
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "alpha-key"},
            {"X-API-Key": ""},
        ):
            reply = predict(service.client, **headers)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert "X-API-Key" in reply.json()["error"]
        for path in (
            "/livez",
            "/readyz",
            "/healthz",
            "/metrics",
            "/v2/health/ready",
            "/docs",
            "/openapi.json",
        ):
            assert service.client.get(path).status_code == 200
        assert service.client.post("/v2/repository/models/squares/load").status_code == 401
        for path in ("/info", "/v2", "/v2/models/squares", "/nowhere", "//info", "/%69nfo", "/livez/../info"):
            assert exchange(service, head("GET", path)).code == 401
        assert exchange(service, head("GET", "/page/../info")).code == 404


def test_a_request_without_a_key_is_refused_before_its_body_comes(file: Path) -> None:
    with serving(api_keys=file) as service, connect(service) as connection:
        connection.sendall(head(content_type="image/png", content_length=10**6))
        assert read(connection).code == 401


@pytest.mark.slow
def test_a_key_that_is_added_or_taken_away_counts_without_a_restart(file: Path) -> None:
    with serving(api_keys=file) as service:
        assert predict(service.client, **{"X-API-Key": "gamma-key"}).status_code == 401
        fresh = file.with_name("fresh")
        fresh.write_bytes(b"gamma-key\n")
        fresh.replace(file)
        until(lambda: predict(service.client, **{"X-API-Key": "gamma-key"}).status_code == 200)
        assert predict(service.client, **{"X-API-Key": "alpha-key"}).status_code == 401


@pytest.mark.slow
def test_each_key_has_its_rate_and_is_told_when_to_come_again(file: Path) -> None:
    with serving(api_keys=file, rate_limit="3/hour") as service:
        for _ in range(3):
            assert predict(service.client, **{"X-API-Key": "alpha-key"}).status_code == 200
        reply = predict(service.client, Authorization="Bearer alpha-key")
        assert reply.status_code == 429
        assert 1100 < int(reply.headers["retry-after"]) <= 1200
        assert "rate limit" in reply.json()["error"]
        assert predict(service.client, **{"X-API-Key": "beta-key"}).status_code == 200
        assert service.client.get("/readyz").status_code == 200


@pytest.mark.slow
def test_without_keys_each_address_has_its_rate() -> None:
    with serving(rate_limit="2/hour") as service:

        def ask(address: str) -> int:
            with httpx.Client(transport=httpx.HTTPTransport(local_address=address)) as client:
                return client.get(f"{service.url}/info").status_code

        assert [ask("127.0.0.1") for _ in range(3)] == [200, 200, 429]
        assert ask("127.0.0.2") == 200


@pytest.mark.slow
def test_http_and_grpc_take_the_tokens_of_one_bucket() -> None:
    with serving(rate_limit="4/hour", grpc_port=0) as service:
        channel = grpc.insecure_channel(f"127.0.0.1:{service.server.ports['grpc']}")
        with channel:
            ask: Any = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
            for _ in range(2):
                assert service.client.get("/info").status_code == 200
                ask(b"", timeout=30)
            assert service.client.get("/info").status_code == 429
            with pytest.raises(grpc.RpcError) as caught:
                ask(b"", timeout=30)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_behind_a_trusted_proxy_each_client_has_its_rate_over_http_and_grpc_alike() -> None:
    with serving(rate_limit="2/hour", grpc_port=0, trusted_proxies="127.0.0.1") as service:

        def ask(forwarded: str) -> int:
            return service.client.get("/info", headers={"X-Forwarded-For": forwarded}).status_code

        assert [ask("198.51.100.1") for _ in range(2)] == [200, 200]
        assert [ask(f"203.0.113.{number}, 198.51.100.1") for number in range(3)] == [429] * 3
        assert ask("198.51.100.2") == 200
        with grpc.insecure_channel(f"127.0.0.1:{service.server.ports['grpc']}") as channel:
            call: Any = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
            call(b"", timeout=30, metadata=[("x-forwarded-for", "198.51.100.2")])
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=30, metadata=[("x-forwarded-for", "198.51.100.2")])
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_whoever_is_no_trusted_proxy_cannot_choose_its_address() -> None:
    with serving(rate_limit="2/hour", trusted_proxies="192.0.2.0/24") as service:
        codes = [
            service.client.get("/info", headers={"X-Forwarded-For": f"198.51.100.{number}"}).status_code
            for number in range(3)
        ]
        assert codes == [200, 200, 429]


@pytest.mark.slow
def test_guesses_take_the_address_s_tokens_and_then_learn_nothing(file: Path) -> None:
    """A right key that the address has not used before is answered as a wrong one, once it has guessed."""
    with serving(api_keys=file, rate_limit="3/hour") as service:
        assert predict(service.client, **{"X-API-Key": "alpha-key"}).status_code == 200
        assert [predict(service.client, **{"X-API-Key": f"guess-{n}"}).status_code for n in range(5)] == [
            401,
            401,
            401,
            429,
            429,
        ]
        wrong = predict(service.client, **{"X-API-Key": "guess"})
        right = predict(service.client, **{"X-API-Key": "beta-key"})
        assert (wrong.status_code, right.status_code) == (429, 429)
        assert wrong.json()["error"].split(";")[0] == right.json()["error"].split(";")[0]
        # Another client behind the same address goes on.
        assert predict(service.client, **{"X-API-Key": "alpha-key"}).status_code == 200


# --- addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peers", "name"),
    [
        (
            ("192.0.2.1", "ipv4:192.0.2.1:4711", "::ffff:192.0.2.1", "ipv6:[::ffff:192.0.2.1]:4711"),
            "192.0.2.1",
        ),
        (("::1", "ipv6:[::1]:4711", "ipv6:%5B::1%5D:4711"), "::1"),
        (("2001:db8::1", "ipv6:%5B2001:db8::2%5D:4711", "2001:db8:0:0:ffff::"), "2001:db8::/64"),
        (("fe80::1%eth0", "ipv6:[fe80::2%25eth0]:1"), "fe80::/64"),
        (("unix:/run/a",), "unix:/run/a"),
        (("",), ""),
    ],
)
def test_an_address_has_one_name_however_it_is_written(peers: tuple[str, ...], name: str) -> None:
    assert {Clients().name(peer, []) for peer in peers} == {name}


@pytest.mark.parametrize(
    ("forwarded", "name"),
    [
        ([], "10.0.0.1"),
        (["198.51.100.1"], "198.51.100.1"),
        (["203.0.113.9, 198.51.100.1"], "198.51.100.1"),
        (["203.0.113.9, 198.51.100.1, 10.0.0.7"], "198.51.100.1"),
        (["203.0.113.9", "198.51.100.1 ,10.0.0.7"], "198.51.100.1"),
        (["198.51.100.1:4711"], "198.51.100.1"),
        (["[2001:db8::1]:4711"], "2001:db8::/64"),
        (["10.0.0.9, 10.0.0.8"], "10.0.0.9"),
        (["198.51.100.1, unknown"], "10.0.0.1"),
        (["198.51.100.1, unknown, 10.0.0.7"], "10.0.0.7"),
        ([""], "10.0.0.1"),
        (["198.51.100.1, " + "9" * 1000], "10.0.0.1"),
    ],
)
def test_behind_proxies_the_last_hop_that_none_of_them_is_counts(forwarded: list[str], name: str) -> None:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    assert Clients("10.0.0.0/8, 2001:db8:1::1").name("10.0.0.1", headers) == name
    assert Clients("10.0.0.0/8, 2001:db8:1::1").name("ipv4:10.0.0.1:4711", headers) == name
    assert Clients("192.0.2.1").name("10.0.0.1", headers) == "10.0.0.1"
    assert Clients().name("10.0.0.1", headers) == "10.0.0.1"


@pytest.mark.parametrize("networks", ["", "proxy.example", "10.0.0.1/8", "10.0.0.0/8,", "10.0.0.0/33"])
def test_proxies_that_are_no_networks_are_refused_with_the_settings(networks: str) -> None:
    with pytest.raises(ValidationError, match="addresses or networks"):
        Settings(trusted_proxies=networks)


# --- which routes are public ------------------------------------------------------------------------------


def test_a_route_that_is_quiet_in_the_log_is_not_therefore_public(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "QUIET", request_log.QUIET | {"/info", "/predict"})
    with serving(api_keys=file) as service:
        assert service.client.get("/info").status_code == 401
        assert predict(service.client).status_code == 401


def test_a_route_that_is_not_quiet_stays_public(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "QUIET", frozenset())
    with serving(api_keys=file) as service:
        assert service.client.get("/livez").status_code == 200


def test_only_these_routes_are_public(file: Path) -> None:
    with serving(api_keys=file) as service:
        schema = service.client.get("/openapi.json").json()["paths"]
        paths = [*schema, "/", "/docs", "/openapi.json", "/page/a/b", "/page/a", "/page/a/b/c", "/page/"]
        public = {
            path
            for path in paths
            if exchange(service, head("GET", path.replace("{", "").replace("}", ""))).code != 401
        }
    assert public == {
        *("/livez", "/readyz", "/healthz", "/metrics", "/v2/health/live", "/v2/health/ready"),
        *("/", "/docs", "/openapi.json", "/page/a/b"),
    }


@pytest.mark.slow
def test_keys_are_in_no_log(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(api_keys=file, log_level="debug") as service:
        predict(service.client, **{"X-API-Key": "alpha-key"})
        predict(service.client, Authorization="Bearer a-wrong-key")
    log = capfd.readouterr().err
    assert "/predict" in log
    assert "alpha-key" not in log
    assert "a-wrong-key" not in log
