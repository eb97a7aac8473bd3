"""One line a request, and what must never stand in it."""

import asyncio
import gc
import io
import logging
import re
import sys
import threading
import weakref
from typing import Any, Literal

import grpc
import httpx
import orjson
import pytest

from pthserve.access import request_log
from pthserve.metrics import LOG_LINES_DROPPED
from pthserve.protos import inference_pb2 as pb

from ..http_service import PATIENCE, serving
from ..serving.squares import png, squares
from ..shared import until


def lines(capfd: pytest.CaptureFixture[str], requests: int, **settings: object) -> list[str]:
    """What a service writes of some requests to /predict."""
    with serving(squares(), log_level="info", **settings) as service:
        for number in range(requests):
            response = service.client.post(
                "/predict?secret=hidden",
                files={"image": ("private.png", png())},
                headers={"x-request-id": f"request-{number}", "authorization": "Bearer hidden"},
            )
            assert response.headers["x-request-id"] == f"request-{number}"
        service.client.get("/hidden/path")
    return capfd.readouterr().err.splitlines()


@pytest.mark.slow
def test_a_request_is_one_json_object_with_all_that_is_known_of_it(capfd: pytest.CaptureFixture[str]) -> None:
    written = [orjson.loads(line) for line in lines(capfd, 3, log_format="json")]
    requests = [line for line in written if line.get("route") == "/predict"]
    assert [line["request_id"] for line in requests] == ["request-0", "request-1", "request-2"]
    for line in requests:
        assert (line["level"], line["method"], line["code"]) == ("info", "POST", 200)
        assert {"time", "duration", "decode", "queue", "infer", "batch", "digest"} <= line.keys()
        assert line["duration"] > line["decode"]
    assert [line["code"] for line in written if line.get("route") == "unmatched"] == [404]


@pytest.mark.slow
def test_the_protocol_s_requests_have_the_same_line_over_http_and_grpc(
    capfd: pytest.CaptureFixture[str],
) -> None:
    image = {"name": "image", "datatype": "UINT8", "shape": [2, 4, 4, 3], "data": [200] * 96}
    message = pb.ModelInferRequest(model_name="squares")
    message.inputs.add(name="image", datatype="UINT8", shape=[2, 4, 4, 3]).contents.uint_contents.extend(
        [200] * 96
    )

    async def call(port: int) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            send: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer"
            )
            await send(message.SerializeToString(), metadata=(("x-request-id", "second"),), timeout=30)

    with serving(squares(), log_level="info", log_format="json", grpc_port=0) as service:
        path, headers = "/v2/models/squares/infer", {"x-request-id": "first"}
        assert service.client.post(path, json={"inputs": [image]}, headers=headers).status_code == 200
        asyncio.run(call(service.server.ports["grpc"]))
    written = [orjson.loads(line) for line in capfd.readouterr().err.splitlines()]
    first, second = (line for line in written if "request_id" in line)
    assert (first["method"], first["route"], first["request_id"]) == (
        "POST",
        "/v2/models/{model}/infer",
        "first",
    )
    assert (second["method"], second["request_id"]) == ("GRPC", "second")
    for line in (first, second):
        assert (line["code"], line["images"], line["digest"]) == (200, 2, "00" * 32)
        assert line["duration"] > max(line["decode"], line["infer"]) > 0
        assert line["queue"] >= 0
        assert 1 <= line["batch"] <= 2


@pytest.mark.slow
def test_a_request_that_is_refused_is_a_line_with_its_code(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(log_level="info", log_format="json") as service:
        assert service.client.post("/predict", files={"image": b"no image"}).status_code == 415
    (line,) = [line for line in map(orjson.loads, capfd.readouterr().err.splitlines()) if "route" in line]
    assert (line["route"], line["code"]) == ("/predict", 415)
    assert "infer" not in line


@pytest.mark.slow
def test_a_request_is_one_line_for_a_person(capfd: pytest.CaptureFixture[str]) -> None:
    (line,) = [line for line in lines(capfd, 1, log_format="text") if "/predict" in line]
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} info +POST /predict 200 ", line)
    assert "request_id=request-0" in line


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json", "text"])
def test_keys_queries_file_names_and_raw_paths_are_not_written(
    capfd: pytest.CaptureFixture[str], form: str
) -> None:
    told = "\n".join(lines(capfd, 1, log_format=form))
    assert "hidden" not in told
    assert "private" not in told


@pytest.mark.slow
def test_probes_are_only_written_at_level_debug(capfd: pytest.CaptureFixture[str]) -> None:
    assert not [line for line in lines(capfd, 0) if "/readyz" in line]


@pytest.mark.parametrize("sent", ["a b", "x" * 129, "", "a\tb", "é"])
def test_a_request_id_that_is_none_is_replaced(client: httpx.Client, sent: str) -> None:
    response = client.get("/livez", headers={b"x-request-id": sent.encode()})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


def test_errors_carry_their_request_id(client: httpx.Client) -> None:
    for response in (client.get("/nothing"), client.post("/predict", headers={"x-request-timeout": "no"})):
        assert response.headers["x-request-id"]


@pytest.mark.slow
def test_a_writer_that_is_stuck_holds_nobody_up() -> None:
    class Stuck(io.StringIO):
        def write(self, _: str) -> int:
            unstuck.wait(30)
            return 0

    unstuck = threading.Event()
    with request_log.written("json", "info", Stuck()):
        for number in range(20_000):
            logging.getLogger("pthserve").info("line %d", number)
        unstuck.set()


@pytest.mark.slow
def test_lines_that_are_dropped_are_counted_and_the_log_says_so() -> None:
    class Slow(io.StringIO):
        """Is written to by a thread that waits for a reader."""

        def write(self, text: str) -> int:
            writing.set()
            reading.wait(PATIENCE)
            return super().write(text)

    writing, reading, stream = threading.Event(), threading.Event(), Slow()
    before = LOG_LINES_DROPPED._value.get()
    logger = logging.getLogger("pthserve")
    with request_log.written("json", "info", stream):
        logger.info("the first")
        assert writing.wait(PATIENCE)
        for number in range(request_log._BACKLOG + 7):
            logger.info("line %d", number)
        assert LOG_LINES_DROPPED._value.get() == before + 7
        reading.set()
        until(lambda: "7 log lines were dropped" in stream.getvalue())
        logger.info("the last")
    written = [orjson.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert len([line for line in written if "dropped" in line]) == 1
    assert len(written) == request_log._BACKLOG + 3


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed")]
)
def test_a_stream_that_fails_ends_neither_the_log_nor_the_service(error: Exception) -> None:
    class Failing(io.StringIO):
        def write(self, text: str) -> int:
            if failing.is_set():
                failed.set()
                raise error
            return super().write(text)

    failing, failed, stream = threading.Event(), threading.Event(), Failing()
    failing.set()
    before = LOG_LINES_DROPPED._value.get()
    with request_log.written("json", "info", stream):
        logging.getLogger("pthserve").info("lost")
        assert failed.wait(PATIENCE)
        until(lambda: LOG_LINES_DROPPED._value.get() == before + 1)
        failing.clear()
        logging.getLogger("pthserve").info("kept")
    written = [orjson.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert written[0] == "kept"
    assert "1 log lines were dropped" in written[1]


def test_what_an_exception_refers_to_is_not_held_until_its_line_is_written() -> None:
    class Body:
        """What a request sent."""

    def record(level: int, message: str, error: Any = None) -> logging.LogRecord:
        return logging.LogRecord("pthserve", level, "", 0, message, (), error)

    def fail(body: Body) -> None:
        raise RuntimeError("cannot")

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            writing.set()
            reading.wait(PATIENCE)
            return super().write(text)

    writing, reading, stream = threading.Event(), threading.Event(), Stuck()
    lines = request_log._Lines(request_log._Json(), stream)
    lines.handle(record(logging.INFO, "the first"))
    assert writing.wait(PATIENCE)
    body = Body()
    held = weakref.ref(body)
    try:
        fail(body)
    except RuntimeError:
        lines.handle(record(logging.ERROR, "it failed", sys.exc_info()))
    del body
    gc.collect()
    assert held() is None
    reading.set()
    lines.close()
    lines.close()  # as Python does with all handlers when it ends
    assert "RuntimeError: cannot" in orjson.loads(stream.getvalue().splitlines()[1])["traceback"]


def test_an_exception_is_written_with_its_traceback() -> None:
    stream = io.StringIO()
    with request_log.written("json", "info", stream):
        try:
            int("why")
        except ValueError:
            logging.getLogger("pthserve").exception("what")
    line = orjson.loads(stream.getvalue())
    assert line["message"] == "what"
    assert "ValueError: invalid literal" in line["traceback"]


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_cannot_be_written_is_said_and_the_lines_behind_it_are_written(
    form: Literal["json", "text"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest-xdist cannot send what they keep

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    stream = io.StringIO()
    log = logging.getLogger("pthserve")
    with request_log.written(form, "info", stream):
        log.info("half %s", "\ud83d", extra={"fields": {"name": "caf\udce9"}})
        log.info("odd", extra={"fields": {"name": Unprintable()}})
        log.info("behind it")
    first, second, third = stream.getvalue().encode().decode().splitlines()
    assert r"half \ud83d" in first.replace(r"\\", "\\")
    assert "a log line could not be formatted" in second
    assert "behind it" in third


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_name_cannot_make_a_line_of_its_own_nor_reach_the_terminal(form: Literal["json", "text"]) -> None:
    forged = "x\n12:00:00.000 error   forged\x1b[2J"
    stream = io.StringIO()
    log = logging.getLogger("pthserve")
    with request_log.written(form, "info", stream):
        log.info("called %s", forged, extra={"fields": {"name": forged}})
        log.error("failed", exc_info=ValueError(forged))
    written = stream.getvalue()
    assert "\x1b" not in written
    assert not [line for line in written.splitlines() if line.startswith("12:00")]
    assert "forged" in written


def test_a_service_that_has_ended_leaves_the_levels_of_loggers_as_they_were() -> None:
    loggers = [logging.getLogger(name) for name in ("root", "pthserve", "uvicorn.error", "PIL")]
    before = [logger.level for logger in loggers]
    with serving(squares(), log_level="debug"):
        assert logging.getLogger("pthserve").level == logging.DEBUG
    assert [logger.level for logger in loggers] == before
