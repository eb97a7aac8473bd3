"""How the service comes and goes."""

import json
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from pthserve.errors import GoldenError, WeightsError
from pthserve.files.golden import Golden
from pthserve.loading.model import Model
from pthserve.server import Server
from pthserve.settings import Settings

from .http_process import process
from .http_service import PATIENCE, serving
from .http_wire import closed, connect, head, read
from .serving.squares import BLUE, RED, Gate, Squares, png, squares
from .shared import refuses, until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_the_port_answers_while_the_model_loads() -> None:
    gate = Gate()
    with serving(lambda: (gate(None), squares())[1]) as service:
        try:
            assert gate.entered.wait(PATIENCE)
            assert service.client.get("/livez").status_code == 200
            reply = service.client.get("/readyz")
            assert (reply.status_code, reply.json()["error"]) == (503, "the model is loading")
        finally:
            gate.opened.set()
        service.wait_until_ready()
        assert service.client.post("/predict", files={"image": png()}).json()["label"] == "red"


def test_with_listen_ready_connections_are_refused_until_there_is_an_answer() -> None:
    gate = Gate()
    with serving(lambda: (gate(None), squares())[1], listen="ready") as service:
        try:
            assert gate.entered.wait(PATIENCE)
            assert refuses(service.port)
        finally:
            gate.opened.set()
        until(lambda: not refuses(service.port), "a port")
        assert service.client.post("/predict", files={"image": png()}).json()["label"] == "red"


def test_with_listen_ready_a_model_that_cannot_be_loaded_ends_the_service_too() -> None:
    def fail() -> Model:
        raise WeightsError("model.pth: there is no such file")

    server = Server(Settings(port=0, log_level="error", listen="ready"), fail)
    with pytest.raises(WeightsError, match="no such file"):
        server.run()


def test_with_listen_ready_the_service_can_be_stopped_while_it_loads() -> None:
    gate = Gate()
    settings = Settings(port=0, drain_seconds=0, log_level="error", listen="ready")
    server = Server(settings, lambda: (gate(None), squares())[1])
    with ThreadPoolExecutor() as threads:
        running = threads.submit(server.run)
        assert gate.entered.wait(PATIENCE)
        server.stop()
        gate.opened.set()
        running.result(PATIENCE)


def test_with_listen_ready_a_port_that_is_in_use_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="cannot listen on"):
        Server(Settings(port=taken.getsockname()[1], listen="ready"), squares)


def test_the_service_is_not_ready_before_it_is_warm() -> None:
    gate = Gate()
    engine = Squares(hook=gate)
    with serving(lambda: squares(engine)) as service:
        try:
            assert gate.entered.wait(PATIENCE)
            assert service.client.get("/readyz").json()["error"] == "the model is warming up"
            assert service.client.post("/predict", files={"image": png()}).status_code == 503
        finally:
            gate.opened.set()
        service.wait_until_ready()
        assert engine.batches


def test_a_model_that_cannot_be_loaded_ends_the_service_with_its_error() -> None:
    def fail() -> Model:
        raise WeightsError("model.pth: there is no such file")

    server = Server(Settings(port=0, log_level="error"), fail)
    with pytest.raises(WeightsError, match="no such file"):
        server.run()


@pytest.mark.parametrize(
    ("setting", "colour", "result"),
    [
        ("gate", RED, "agreed"),
        ("warn", RED, "agreed"),
        ("warn", BLUE, "disagreed"),
        ("off", BLUE, "unchecked"),
    ],
)
def test_golden_images_are_checked_before_the_service_is_ready(
    tmp_path: Path, setting: str, colour: tuple[int, int, int], result: str
) -> None:
    with serving(golden(tmp_path, colour), golden=setting) as service:
        assert service.client.get("/info").json()["golden"] == {"images": 1, "result": result}


def test_golden_images_that_disagree_keep_a_model_out(tmp_path: Path) -> None:
    server = Server(Settings(port=0, log_level="error"), lambda: golden(tmp_path, BLUE))
    with pytest.raises(GoldenError, match=r"golden\.png"):
        server.run()


def golden(folder: Path, colour: tuple[int, int, int]) -> Model:
    """A model that should find red in an image of `colour`."""
    image = folder / "golden.png"
    image.write_bytes(png(colour))
    return replace(squares(), golden=(Golden(image, 0, 0.8),))


def test_a_port_that_is_taken_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=str(port)):
            Server(Settings(port=port), squares)


def test_metrics_are_on_their_own_port_alone_when_that_is_set() -> None:
    with serving(metrics_port=0) as service:
        assert service.client.get("/metrics").status_code == 404
        port = service.server.ports["metrics"]
        assert "pthserve_saturation" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
        reply = httpx.get(f"http://127.0.0.1:{port}/predict")
        assert (reply.status_code, list(reply.json())) == (404, ["error"])


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_service_with_0(stop: signal.Signals) -> None:
    with process(drain_seconds=0) as service:
        until(service.ready)
        service.child.send_signal(stop)
        code, log = service.end()
        assert code == 0, log


def test_no_request_imports_a_module() -> None:
    """One that came when the process was out of descriptors would fail."""
    command = [sys.executable, "-m", "tests.http.late_imports"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []


def test_a_signal_ends_a_service_that_still_loads() -> None:
    with process(loading=60, drain_seconds=60) as service:
        assert service.ask("/livez")
        service.child.send_signal(signal.SIGTERM)
        assert service.end()[0] == 0


def test_draining_serves_new_requests_and_is_not_ready() -> None:
    with process(drain_seconds=60) as service:
        until(service.ready)
        service.child.send_signal(signal.SIGTERM)
        until(lambda: not service.ready())
        reply = service.client.post("/predict", files={"image": png()})
        assert reply.status_code == 200
        assert reply.headers["connection"] == "close"
        health = service.ask("/healthz")
        assert health is not None
        assert health.json()["error"] == "the service is shutting down"
        service.child.send_signal(signal.SIGTERM)  # and now in a hurry
        assert service.end()[0] == 0


def test_an_interrupt_does_not_drain() -> None:
    with process(drain_seconds=60) as service:
        until(service.ready)
        service.child.send_signal(signal.SIGINT)
        assert service.end()[0] == 0


def test_whatever_hangs_the_process_ends_soon_after_its_deadline() -> None:
    """An event loop that hangs stands for all: nothing in Python could end the process then."""
    code = """
import threading, time
from pthserve.server import Server
from pthserve.settings import Settings
from tests.serving.squares import squares

def hang():
    while not server._stop.is_set():
        time.sleep(0.01)
    server._loop.call_soon_threadsafe(time.sleep, 3600)

server = Server(Settings(port=0, drain_seconds=0.5, deadline=0.5), squares)
threading.Thread(target=hang, daemon=True).start()
server._loop.call_soon(print, "serving", server.ports["http"])
server.run()
"""
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        try:
            assert child.stdout is not None
            port = int(child.stdout.readline().split()[1])
            until(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200)
            child.send_signal(signal.SIGTERM)
            assert child.wait(PATIENCE) == -signal.SIGALRM
        finally:
            child.kill()


def test_a_service_that_ended_in_time_leaves_no_alarm_behind() -> None:
    code = """
import os, signal, threading, time
from pthserve.server import Server
from pthserve.settings import Settings
from tests.serving.squares import squares

server = Server(Settings(port=0, drain_seconds=0), squares)

def end():
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end, daemon=True).start()
server.run()
print(signal.getitimer(signal.ITIMER_REAL))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE
    )
    assert done.stdout == "(0.0, 0.0)\n", done.stderr


def test_what_is_in_flight_is_finished() -> None:
    gate = Gate()
    with serving(squares(engine := Squares())) as service:
        engine.hook = gate
        body = png()
        with connect(service) as connection:
            connection.sendall(head(content_type="image/png", content_length=len(body)) + body)
            assert gate.entered.wait(PATIENCE)
            service.server.stop()
            until(lambda: refuses(service.port), "closed listeners")
            gate.opened.set()
            assert read(connection).code == 200
            assert closed(connection)


def test_no_request_is_lost_when_the_service_is_told_to_stop_under_load() -> None:
    """As in a cluster: a client that sees the service is not ready sends its next request elsewhere."""
    with process(each=0.005, drain_seconds=1.0) as service:
        until(service.ready)
        failures: list[str] = []
        answered = [0] * 8
        leave = threading.Event()

        def load(number: int) -> None:
            with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=PATIENCE) as client:
                while not leave.is_set():
                    try:
                        reply = client.post("/predict", files={"image": png()})
                    except httpx.HTTPError as error:
                        failures.append(repr(error))
                        return
                    if reply.status_code != 200:
                        failures.append(reply.text)
                    answered[number] += 1

        clients = [threading.Thread(target=load, args=(number,)) for number in range(len(answered))]
        for client in clients:
            client.start()
        until(lambda: min(answered) > 3)
        service.child.send_signal(signal.SIGTERM)
        until(lambda: not service.ready())
        before = sum(answered)
        until(lambda: sum(answered) > before)  # the endpoints' controller needs its time, too
        leave.set()
        for client in clients:
            client.join()
        assert not failures
        code, log = service.end()
        assert code == 0, log
        codes = {json.loads(line).get("code") for line in log.splitlines() if "/predict" in line}
        assert codes == {200}


# --- a model that is reloaded -------------------------------------------------------------------------------


class Source:
    """What a service loads: `model`."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self) -> Model:
        return self.model


def test_the_repository_s_load_reads_the_model_anew_and_info_says_so() -> None:
    source = Source(squares(digest="aa" * 32))
    with serving(source) as service:
        service.wait_until_ready()
        assert service.client.get("/info").json()["last_reload"] is None
        source.model = squares(digest="bb" * 32)
        assert service.client.post("/v2/repository/models/squares/load").status_code == 200
        info = service.client.get("/info").json()
        assert info["digest"] == "bb" * 32
        assert (info["last_reload"]["result"], info["last_reload"]["digest"]) == ("ok", "bb" * 32)
        source.model = squares(labels=("red", "green", "blue", "black"))
        reply = service.client.post("/v2/repository/models/squares/load")
        assert reply.status_code == 409
        info = service.client.get("/info").json()
        assert (info["digest"], info["last_reload"]["result"]) == ("bb" * 32, "failed")
        assert service.client.post("/predict", files={"image": png()}).status_code == 200


def test_sighup_reads_the_model_anew() -> None:
    with process() as service:
        until(service.ready)
        loads = 'pthserve_model_loads_total{result="ok"}'
        assert service.metric(loads) == 1
        service.child.send_signal(signal.SIGHUP)
        until(lambda: service.metric(loads) == 2)
        service.child.send_signal(signal.SIGTERM)
        service.child.send_signal(signal.SIGTERM)
        code, log = service.end()
        assert code == 0, log
        assert "the model was replaced" in log
