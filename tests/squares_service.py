"""The squares' model as a process: `squares_service.py SETTINGS-AS-JSON SECONDS-AN-IMAGE SECONDS-TO-LOAD`.

The first line it prints is its ports.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving.squares import Squares, squares

from pthserve.errors import GoldenError, WeightsError
from pthserve.loading.model import Model
from pthserve.server import Server
from pthserve.settings import Settings


def main() -> int:
    settings, each, loading = json.loads(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])

    def load() -> Model:
        time.sleep(loading)
        return squares(Squares(each))

    server = Server(Settings(**{"port": 0, "log_format": "json", **settings}), load)
    print(json.dumps(server.ports), flush=True)
    try:
        server.run()
    except GoldenError:
        return 4
    except WeightsError:
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
