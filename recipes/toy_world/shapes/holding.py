"""The one rule by which invented items (sums, sentences, names) are kept out of training.

An item is held out by a checksum of its own wording, so that training and test never meet whatever the seeds are. This
module knows no shape.
"""

import zlib

HELD_OUT_SHARE_PERCENT = 10


def held_out(key: str) -> bool:
    """Whether the item of this key belongs to the test and never to training."""
    return zlib.crc32(key.encode()) % 100 < HELD_OUT_SHARE_PERCENT
