"""A plain FastAPI service, as a tutorial has it."""

import io
import sys
from typing import Annotated

import torch
import uvicorn
from fastapi import FastAPI, File
from PIL import Image
from torchvision import transforms

from benchmarks import peers

app = FastAPI()
transform = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = peers.model(*sys.argv[1:3]).to(device)


@app.get("/health")
def health() -> dict[str, str]:
    """The model was loaded before the port was opened."""
    return {"status": "ok"}


@app.post("/predict")
async def predict(image: Annotated[bytes, File()]) -> dict[str, object]:
    """One image, one forward pass."""
    tensor = transform(Image.open(io.BytesIO(image)).convert("RGB"))
    with torch.inference_mode():
        probabilities = model(tensor[None].to(device)).softmax(1)[0]
    return {"class_index": int(probabilities.argmax()), "probabilities": probabilities.tolist()}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[3]), log_level="warning")
