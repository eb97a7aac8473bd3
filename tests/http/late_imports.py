"""Prints what the requests import that a service, ready and left alone, has not imported."""

import json
import logging
import sys

from tests.http_service import Service, serving
from tests.serving.squares import png

from ..shared import until

FORMATS = "application/openmetrics-text; version=1.0.0"
TENSOR = {"name": "input", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [0] * 12}


def ask(service: Service) -> None:
    """Have each route answer, well and badly."""
    client = service.client
    schema = client.get("/openapi.json").json()["paths"]
    for path in ("/", "/docs", "/nothing", *schema):
        known = path.replace("{model}", "squares").replace("{name}", "squares").replace("{version}", "1")
        for method in ("GET", "HEAD", "POST", "DELETE"):
            client.request(method, known)
    client.get("/metrics", headers={"accept": FORMATS})
    for path in ("/predict", "/explain"):
        assert client.post(path, files={"image": png()}).status_code == 200
        assert client.post(path, files={"image": b"none"}).status_code == 415
    infer = "/v2/models/squares/infer"
    assert client.post(infer, json={"inputs": [TENSOR]}).status_code == 200
    assert client.post(infer, json={"inputs": []}).status_code == 400
    assert client.post(infer, content=b"{", headers={"content-encoding": "gzip"}).status_code == 400


def main() -> None:
    """Serve, wait until the service has imported all it will, ask, and look again."""
    lines: list[str] = []
    logger = logging.getLogger("pthserve.server")
    logger.addFilter(lambda record: lines.append(record.getMessage()) or True)
    with serving(log_level="debug") as service:
        until(lambda: "imported the modules that requests need" in lines)
        before = set(sys.modules)
        ask(service)
        print(json.dumps(sorted(set(sys.modules) - before)))


if __name__ == "__main__":
    main()
