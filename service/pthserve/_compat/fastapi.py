"""FastAPI: imported without validators for its models of OpenAPI documents, which only the schema needs.

Written for pydantic 2.14, which does not document that `BaseModel` itself may be configured.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel


@contextmanager
def validators_on_first_use() -> Iterator[None]:
    """Have pydantic build the validator of a model when it is first used, if the block defines the model.

    Those of `fastapi.openapi.models` take 20 ms.
    """
    BaseModel.model_config["defer_build"] = True
    try:
        yield
    finally:
        del BaseModel.model_config["defer_build"]
