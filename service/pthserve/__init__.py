"""pthserve: drop in a `.pth`, get a service.

```python
import pthserve

model = pthserve.load("model.pth")
print(model("cat.jpg").label)
pthserve.serve(model)
```

Nothing else is imported until one of these names is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pthserve.api import Serving, load, serve
    from pthserve.errors import (
        ArchitectureError,
        BrokenImage,
        CardError,
        EngineError,
        EngineFailed,
        GoldenError,
        ModelError,
        PackError,
        PthserveError,
        RequestError,
        SignatureError,
        TooLarge,
        UnsupportedImage,
        WeightsError,
    )
    from pthserve.loading.model import Model
    from pthserve.options import ModelOptions
    from pthserve.tasks.binary import Binary
    from pthserve.tasks.classification import Classification
    from pthserve.tasks.embedding import Embedding
    from pthserve.tasks.multilabel import MultiLabel
    from pthserve.tasks.objects import Detections
    from pthserve.tasks.regression import Regression
    from pthserve.tasks.segments import Segmentation

__version__ = "0.1.0"

__all__ = [
    "ArchitectureError",
    "Binary",
    "BrokenImage",
    "CardError",
    "Classification",
    "Detections",
    "Embedding",
    "EngineError",
    "EngineFailed",
    "GoldenError",
    "Model",
    "ModelError",
    "ModelOptions",
    "MultiLabel",
    "PackError",
    "PthserveError",
    "Regression",
    "RequestError",
    "Segmentation",
    "Serving",
    "SignatureError",
    "TooLarge",
    "UnsupportedImage",
    "WeightsError",
    "__version__",
    "load",
    "serve",
]

_MODULES = {
    "Binary": "tasks.binary",
    "Classification": "tasks.classification",
    "Detections": "tasks.objects",
    "Embedding": "tasks.embedding",
    "Model": "loading.model",
    "ModelOptions": "options",
    "MultiLabel": "tasks.multilabel",
    "Regression": "tasks.regression",
    "Segmentation": "tasks.segments",
    "Serving": "api",
    "load": "api",
    "serve": "api",
}
"""Where a public name is; what is not listed is an error."""


if not TYPE_CHECKING:  # else a type checker would take any name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
