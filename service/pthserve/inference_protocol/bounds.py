"""Bounds: limits of a request of the protocol, the same over REST and gRPC."""

MAX_TEXT = 2**10
"""Maximum bytes of an id, a name or a parameter: of any text that is not an element of `data`."""
MAX_PARAMETERS = 64
"""Maximum number of parameters of a request, of an input or of an output."""
MAX_OUTPUTS = 16
"""Maximum number of outputs that a request may name; no model has as many."""
LARGE = 2**16
"""Elements of a response from which on it is written in a thread."""
