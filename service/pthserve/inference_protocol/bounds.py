"""Bounds: what no request of the protocol needs more of, over REST and gRPC alike."""

MAX_TEXT = 2**10
"""Most bytes of an id, a name, or a parameter: any text that is no element of `data`."""
MAX_PARAMETERS = 64
"""Most parameters of a request, of an input or of an output."""
MAX_OUTPUTS = 16
"""Most outputs that a request asks for; there are fewer."""
