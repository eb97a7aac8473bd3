"""A client: `python client.py URL IMAGE...` prints what a service says of each image.

It waits as long as the service asks it to, when that is busy.
"""

import json
import mimetypes
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ATTEMPTS = 5


def predict(url: str, image: Path, top: int = 3) -> dict[str, Any]:
    """The service's answer; raises SystemExit with its error message where it refuses."""
    kind = mimetypes.guess_type(image)[0] or "image/jpeg"
    for attempt in range(1, ATTEMPTS + 1):
        request = urllib.request.Request(
            f"{url}/predict?top={top}", image.read_bytes(), {"Content-Type": kind}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                answer: dict[str, Any] = json.load(reply)
                return answer
        except urllib.error.HTTPError as error:
            if error.code != 503 or attempt == ATTEMPTS:
                sys.exit(f"{image}: {error.code}: {json.load(error)['error']}")
            time.sleep(float(error.headers["Retry-After"]))
    raise AssertionError


if __name__ == "__main__":
    service, *images = sys.argv[1:]
    for name in images:
        for best in predict(service, Path(name))["top"]:
            print(f"{name}: {best['label']} {best['probability']:.3f}")
