"""Exact duplicates: the second copy of a text, recognised by a digest, so that memory holds 16 bytes of each text.

Two texts are the same when they agree after Unicode normalisation (NFC) and without white space at either end. The
digest also serves as the text's place in a split (`common.splits`). It knows no file and no stage.
"""

import hashlib
import unicodedata

DIGEST_BYTES = 16


def digest(text: str, *, seed: int = 0) -> bytes:
    """16 bytes that stand for `text`: equal for equal texts, different (2**-64 at 4 billion texts) for others."""
    normal = unicodedata.normalize("NFC", text).strip()
    return hashlib.blake2b(normal.encode(), digest_size=DIGEST_BYTES, salt=seed.to_bytes(16, "little")).digest()


class ExactDuplicates:
    """Remembers every digest that it was shown."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def seen_before(self, key: bytes) -> bool:
        """Whether `key` was shown before; remembers it."""
        if key in self._seen:
            return True
        self._seen.add(key)
        return False
