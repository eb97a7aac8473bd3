"""Compression: decompress the body of a request or a message, within a limit."""

import zlib

from pthserve.errors import MalformedRequest, TooLarge

ENCODINGS = ("gzip", "deflate")
"""Compressions of a body, as HTTP and gRPC name them. Deflate is zlib's format (RFC 1950)."""

_GZIP = b"\x1f\x8b"
_ZLIB = b"\x78"


def inflated(body: bytes, limit: int) -> bytes:
    """Decompress `body`, which is compressed with one of ENCODINGS.

    Raises:
        TooLarge: It has more than `limit` bytes after decompression.
        MalformedRequest: It is not exactly one complete stream.
    """
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip or zlib, whichever its header says
    try:
        plain = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise MalformedRequest(f"the body cannot be decompressed: {error}") from error
    if len(plain) > limit:
        raise TooLarge(f"the body has more than {limit} bytes after decompression")
    if not decoder.eof or decoder.unused_data:
        raise MalformedRequest("the body must be exactly one complete gzip or zlib stream")
    return plain


def is_compressed(message: bytes) -> bool:
    """Return whether a gRPC message is compressed. gRPC does not say so, but the first bytes do.

    No message of the protocol begins like gzip (a field of a wire type that does not exist) or like zlib
    (field 15, which no message has).
    """
    if message.startswith(_GZIP):
        return True
    return message[:1] == _ZLIB and len(message) > 1 and (message[0] << 8 | message[1]) % 31 == 0
