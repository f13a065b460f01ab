"""Deduplication: exact hashes (`exact`) and MinHash LSH (`near`). Independent of files and stages."""

from common.duplicates.exact import DIGEST_BYTES, digest, exact_duplicates
from common.duplicates.near import NearDuplicatesConfig, near_duplicates

__all__ = ["DIGEST_BYTES", "NearDuplicatesConfig", "digest", "exact_duplicates", "near_duplicates"]
