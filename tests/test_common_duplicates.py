"""Exact duplicates and the cut into splits, against plain Python sets and counts."""

import collections
import unicodedata

import pytest
from errors_tiny import refuses
from hypothesis import given
from hypothesis import strategies as st

from common.documents import SPLITS, Shares, assign_splits
from common.duplicates import DIGEST_BYTES, digest

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=5)


@given(texts=st.lists(TEXT))
def test_duplicates_are_what_a_set_of_normalised_texts_says(texts: list[str]) -> None:
    seen: set[str] = set()
    digests: set[bytes] = set()
    for text in texts:
        normal = unicodedata.normalize("NFC", text).strip()
        assert (digest(text) in digests) == (normal in seen)
        seen.add(normal)
        digests.add(digest(text))


def test_digest() -> None:
    assert digest("がく\n") == digest("か\u3099く") != digest("かく")
    assert len(digest("春")) == DIGEST_BYTES
    assert digest("春", seed=1) != digest("春")


def test_shares_are_kept_and_do_not_depend_on_the_order() -> None:
    digests = [digest(str(number)) for number in range(20_000)]
    splits = assign_splits(digests, Shares(calibration=0.05, validation=0.1, test=0.15))
    counts = collections.Counter(SPLITS[split] for split in splits)
    for name, share in {"train": 0.7, "calibration": 0.05, "validation": 0.1, "test": 0.15}.items():
        assert abs(counts[name] / 20_000 - share) < 0.01
    back = assign_splits(digests[::-1], Shares(calibration=0.05, validation=0.1, test=0.15))
    assert (back[::-1] == splits).all()
    # A corpus that grows moves no document.
    fewer = assign_splits(digests[:5000], Shares(calibration=0.05, validation=0.1, test=0.15))
    assert (fewer == splits[:5000]).all()


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        (0, set[str]()),
        (1, {"train"}),
        (2, {"train", "validation"}),
        (3, {"train", "validation", "test"}),
        (4, set(SPLITS)),
    ],
)
def test_a_small_corpus_fills_the_splits_in_order(documents: int, expected: set[str]) -> None:
    for seed in range(50):  # whichever split the digests alone would choose
        digests = [digest(str(number), seed=seed) for number in range(documents)]
        shares = Shares(calibration=0.3, validation=0.3, test=0.3)
        splits = [SPLITS[split] for split in assign_splits(digests, shares)]
        assert len(splits) == documents and expected <= set(splits)


def test_a_share_of_zero_stays_empty() -> None:
    splits = assign_splits([digest(str(number)) for number in range(50)], Shares(calibration=0, validation=0.1, test=0))
    assert {SPLITS[split] for split in splits} == {"train", "validation"}


def test_shares_that_leave_nothing_are_refused() -> None:
    with refuses("out-of-range", got="calibration 0.5, validation 0.3, test 0.2"):
        Shares(calibration=0.5, validation=0.3, test=0.2)
    with refuses("out-of-range", got="test -0.1"):
        Shares(test=-0.1)
