"""Compression: a compressed body or message as it was before, within a bound."""

import zlib

from pthserve.errors import MalformedRequest, TooLarge

ENCODINGS = ("gzip", "deflate")
"""What a body may be compressed with, as HTTP and gRPC call it. Deflate is zlib's format (RFC 1950)."""

_GZIP = b"\x1f\x8b"
_ZLIB = b"\x78"


def inflated(body: bytes, limit: int) -> bytes:
    """`body`, compressed with one of ENCODINGS, as it was before; of `limit` bytes at most.

    Raises TooLarge, and MalformedRequest where it is not one whole stream.
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
    """Whether a gRPC message, as it came, is compressed: gRPC does not say so, but its first bytes do.

    No message of the protocol begins like gzip (a field of a kind that there is not) or like zlib (field 15,
    which none has).
    """
    if message.startswith(_GZIP):
        return True
    return message[:1] == _ZLIB and len(message) > 1 and (message[0] << 8 | message[1]) % 31 == 0
