"""A model in a notebook: load it, call it, serve it. Each `# %%` begins a cell."""

# %% Load a model: a weights file, a folder with one, or a packed model.
import json
import os
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

import pthserve

folder = Path(os.environ.get("MODEL", "weights/digits"))
model = pthserve.load(folder, device="cpu")
print(model.name, model.num_classes, "classes,", model.forward.name, model.forward.precision)

# %% Call it with the path of an image.
images = sorted((folder / "golden").glob("*.png"))
answer = model(images[0])
print(answer.label, f"{answer.probabilities[answer.class_index]:.3f}")
for index in answer.top(3):
    print(f"  {answer.labels[index]:10} {answer.probabilities[index]:.3f}")

# %% Bytes, an image of Pillow's and an array give the same answer.
with Image.open(images[0]) as image:
    same = model.batch([images[0].read_bytes(), image, np.asarray(image.convert("RGB"))])
assert all(each.class_index == answer.class_index for each in same)

# %% Many images at once.
for path, each in zip(images, model.batch(images), strict=True):
    print(path.name, "->", each.label)

# %% What is not an image costs a clear error.
try:
    model(b"no image")
except pthserve.RequestError as error:
    print("refused:", error)

# %% Serve it while the notebook goes on; port 0 is any free port.
service = pthserve.serve(model, port=0, block=False, log_level="warning")
print("open", service.address)

# %% Ask it.
request = urllib.request.Request(
    f"{service.address}/predict?top=1", images[0].read_bytes(), {"Content-Type": "image/png"}
)
with urllib.request.urlopen(request) as reply:
    print("the service says", json.load(reply)["label"])

# %% Stop the service, and give the model's memory back.
service.stop()
model.close()
