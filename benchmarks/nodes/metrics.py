"""Metrics: the saturation of simulated pods, through Prometheus and prometheus-adapter to the autoscaler."""

import bisect
import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.nodes.cluster import Cluster
from benchmarks.nodes.control_plane import ROOT, wait
from benchmarks.process import free_port
from pthserve.sizing.prediction import Predictor

POINTS = 16
"""Rates at which the saturation of a pod is predicted; between two, it is interpolated."""
SCRAPE = 15.0
"""Seconds between two scrapes of Prometheus, on a wall clock."""
RULE = ROOT / "k8s" / "monitoring" / "adapter.yaml"


class Saturation:
    """`pthserve_saturation` of a pod by its rate, from the service curve: 1 at the capacity and beyond."""

    def __init__(self, predictor: Predictor) -> None:
        capacity = predictor.curve.capacity
        self._rates = [0.0, *(capacity * (step + 1) / (POINTS + 1) for step in range(POINTS)), capacity]
        self._values = [0.0, *(predictor.at(rate).saturation for rate in self._rates[1:-1]), 1.0]

    def __call__(self, rate: float) -> float:
        if rate >= self._rates[-1]:
            return 1.0
        above = bisect.bisect_right(self._rates, rate)
        low, high = self._rates[above - 1 : above + 1]
        before, after = self._values[above - 1 : above + 1]
        return before + (after - before) * (rate - low) / (high - low)


class Exporter:
    """A Prometheus exporter of the saturation of all pods, within a `with` block."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._text = b""
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = exporter._text
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # a scrape that was given up
                    self.wfile.write(text)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> "Exporter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def show(self, pods: Sequence[str], saturation: float) -> None:
        """From now on, each of the pods has this saturation, and no others have any."""
        lines = [
            f'pthserve_saturation{{namespace="{self._namespace}",pod="{pod}"}} {saturation:.4f}\n'
            for pod in pods
        ]
        self._text = ("# TYPE pthserve_saturation gauge\n" + "".join(lines)).encode()


@contextlib.contextmanager
def served(cluster: Cluster, exporter: Exporter, factor: int) -> Iterator[None]:
    """Prometheus, and prometheus-adapter with the rule of k8s/monitoring, `factor` times as fast."""
    plane = cluster.plane
    prometheus, adapter = free_port(), free_port()
    config = plane.folder / "prometheus.yaml"
    scrape = f"{round(1000 * SCRAPE / factor)}ms"
    config.write_text(f"""\
global: {{scrape_interval: {scrape}, scrape_timeout: {scrape}}}
scrape_configs:
- job_name: pods
  honor_labels: true
  static_configs: [{{targets: ["{exporter.address}"]}}]
""")
    rule = plane.folder / "adapter.yaml"
    rule.write_text(
        re.sub(r"\[(\d+)s\]", lambda found: f"[{1000 * int(found[1]) // factor}ms]", RULE.read_text())
    )
    with (
        plane.start(
            "prometheus",
            *("--config.file", str(config)),
            *("--storage.tsdb.path", str(plane.folder / "prometheus")),
            *("--web.listen-address", f"127.0.0.1:{prometheus}"),
        ) as running,
        plane.start(
            "prometheus-adapter",
            *("--config", str(rule)),
            *("--prometheus-url", f"http://127.0.0.1:{prometheus}"),
            *("--metrics-relist-interval", "5s"),
            *("--bind-address", "127.0.0.1", "--secure-port", str(adapter)),
            *("--cert-dir", str(plane.folder / "adapter")),
            *(
                part
                for name in ("lister", "authentication", "authorization")
                for part in (f"--{name}-kubeconfig", str(plane.kubeconfig))
            ),
        ),
    ):
        running.ready(f"http://127.0.0.1:{prometheus}/-/ready")
        cluster.kubectl("apply", "-f", "-", given=_api(adapter))
        path = "/apis/custom.metrics.k8s.io/v1beta1"
        wait(
            lambda: "pods/pthserve_saturation" in cluster.kubectl("get", "--raw", path, check=False),
            "prometheus-adapter serves no saturation",
        )
        try:
            yield
        finally:  # an API that does not answer would keep the garbage collector from deleting anything
            cluster.kubectl("delete", "apiservice", "v1beta1.custom.metrics.k8s.io")


def _api(port: int) -> str:
    return f"""\
apiVersion: v1
kind: Service
metadata: {{name: prometheus-adapter, namespace: kube-system}}
spec: {{type: ExternalName, externalName: localhost}}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {{name: v1beta1.custom.metrics.k8s.io}}
spec:
  group: custom.metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {{name: prometheus-adapter, namespace: kube-system, port: {port}}}
"""
