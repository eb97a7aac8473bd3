"""Hugging Face."""

from pthserve.zoos.base import Architecture, Source


class HuggingFace:
    """Image classifiers of transformers; see `Zoo`."""

    def claims(self, source: Source) -> bool:  # noqa: ARG002
        return False

    def build(self, source: Source) -> Architecture:
        raise NotImplementedError
