"""LitServe, as its documentation has it."""

import sys

import litserve
import torch
from fastapi import Request
from PIL import Image
from torchvision import transforms

from benchmarks.peers import model


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """A model behind a multipart form."""

    def __init__(self, architecture: str, weights: str) -> None:
        super().__init__()
        self.architecture, self.weights = architecture, weights

    def setup(self, device: str) -> None:
        """Load the model in the worker's process."""
        self.model = model(self.architecture, self.weights).to(device)
        self.transform = transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def decode_request(self, request: Request) -> torch.Tensor:
        """Form to tensor."""
        tensor: torch.Tensor = self.transform(Image.open(request["image"].file).convert("RGB"))
        return tensor

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Tensor to probabilities."""
        with torch.inference_mode():
            probabilities: torch.Tensor = self.model(x[None].to(self.device)).softmax(1)[0]
        return probabilities

    def encode_response(self, output: torch.Tensor) -> dict[str, object]:
        """Probabilities to JSON."""
        return {"class_index": int(output.argmax()), "probabilities": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Classifier(*sys.argv[1:3]), accelerator="auto")
    server.run(host="127.0.0.1", port=int(sys.argv[3]), generate_client_file=False, log_level="warning")
