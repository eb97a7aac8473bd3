"""A detector or a segmentation model of torchvision in a plain FastAPI service, as a tutorial has it.

python -m benchmarks.peers.finder ARCHITECTURE WEIGHTS PORT
"""

import io
import sys
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI, File, Response
from PIL import Image
from torch.nn.functional import interpolate
from torchvision import models

app = FastAPI()
architecture, weights = sys.argv[1:3]
device = "cuda" if torch.cuda.is_available() else "cpu"
model = models.get_model(architecture, weights=None, weights_backbone=None)
model.load_state_dict(torch.load(weights))
model.eval().to(device)
transform = models.get_model_weights(architecture).DEFAULT.transforms()


@app.get("/health")
def health() -> dict[str, str]:
    """The model was loaded before the port was opened."""
    return {"status": "ok"}


@app.post("/predict", response_model=None)
async def predict(image: Annotated[bytes, File()]) -> Response | dict[str, Any]:
    """One image, one forward pass: the objects, or the class of each pixel as PNG."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    tensor = transform(picture)[None].to(device)
    with torch.inference_mode():
        found = model(tensor)
        if isinstance(found, list):
            return {name: values.tolist() for name, values in found[0].items()}
        scores = interpolate(found["out"], picture.size[::-1], mode="bilinear")
    file = io.BytesIO()
    Image.fromarray(scores[0].argmax(0).byte().cpu().numpy()).save(file, "PNG")
    return Response(file.getvalue(), media_type="image/png")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[3]), log_level="warning")
