"""Texts that are there twice: exactly (`exact`), or nearly (`near`). Neither knows a file or a stage."""

from common.duplicates.exact import DIGEST_BYTES, ExactDuplicates, digest, repeated
from common.duplicates.near import NearDuplicatesConfig

__all__ = ["DIGEST_BYTES", "ExactDuplicates", "NearDuplicatesConfig", "digest", "repeated"]
