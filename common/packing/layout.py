"""What a packed split folder holds, for the writer and the reader alike."""

from typing import Any

import numpy as np

FULL_WEIGHT = 100
"""The loss weight 1, in hundredths."""
ARRAYS: dict[str, np.dtype[Any]] = {"tokens": np.dtype("<i4"), "doc_ids": np.dtype("<i4"), "weights": np.dtype("u1")}
"""The .npy files and their number formats; each is [R, T]. doc_ids count from 1 inside a row, 0 is padding."""
