"""Near-duplicates against exact Jaccard similarities, and sorting in ranges against a plain sort."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from errors_tiny import refuses
from hypothesis import given, settings
from hypothesis import strategies as st

import common.duplicates
from common.duplicates import NearDuplicatesConfig, exact_duplicates, near_duplicates, signatures, sorted_ranges

CONFIG = NearDuplicatesConfig()


def grams(text: str) -> set[str]:
    text = "".join(text.split())
    return {text[start : start + 5] for start in range(max(1, len(text) - 4))}


def jaccard(one: str, other: str) -> float:
    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


def sentences(rng: random.Random, count: int) -> list[str]:
    letters = "あいうえおかきくけこさしすせそ山川春夏秋冬町村人花"
    return ["".join(rng.choices(letters, k=rng.randint(15, 40))) + "。" for _ in range(count)]


def found_in(texts: list[str], config: NearDuplicatesConfig = CONFIG, removed: list[int] | None = None) -> list[bool]:
    keys, checks = signatures(texts, config)
    already = np.zeros(len(texts), bool)
    already[removed or []] = True
    pieces = lambda band: iter(np.array_split(keys[:, band], 3))  # noqa: E731
    return near_duplicates(len(texts), pieces, lambda which: checks[which], config, already_removed=already).tolist()


def test_estimates_are_near_the_exact_similarity() -> None:
    rng = random.Random(0)
    pairs: list[tuple[str, str]] = []
    for changed in range(0, 20, 2):
        one = sentences(rng, 20)
        pairs.append(("".join(one), "".join(sentences(rng, changed) + one[changed:])))
    _, checks = signatures([text for pair in pairs for text in pair], CONFIG)
    for number, (one, other) in enumerate(pairs):
        estimate = (checks[2 * number] == checks[2 * number + 1]).mean()
        # Four standard deviations of a mean over 256 permutations.
        assert estimate == pytest.approx(jaccard(one, other), abs=4 * 0.5 / 16)
    assert (checks[0] == checks[1]).all()


def test_one_sentence_changed_is_found_and_other_texts_are_not() -> None:
    rng = random.Random(1)
    texts = [sentences(rng, rng.randint(5, 30)) for _ in range(300)]
    changed: list[list[str]] = []
    for text in texts:
        place = rng.randrange(len(text))
        changed.append([*text[:place], *sentences(rng, 1), *text[place + 1 :]])
    everything = ["".join(text) for text in texts + changed]
    found = found_in(everything)
    assert found[:300] == [False] * 300
    assert sum(found[300:]) >= 0.98 * 300


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 40))
def test_the_earliest_of_each_set_stays(seed: int, count: int) -> None:
    rng = random.Random(seed)
    originals = ["".join(sentences(rng, 10)) for _ in range(count)]
    copies = [rng.choice(originals) for _ in range(count)]
    texts = originals + copies
    rng.shuffle(texts)
    seen: set[str] = set()
    expected: list[bool] = []
    for text in texts:
        expected.append(text in seen)
        seen.add(text)
    assert found_in(texts) == expected


def test_chains_are_one_set_and_removed_texts_take_no_part() -> None:
    rng = random.Random(3)
    a = sentences(rng, 12)
    b, c = [*a[:9], *sentences(rng, 3)], [*a[:6], *sentences(rng, 3)]
    c += b[9:]
    texts = ["".join(text) for text in (a, b, c)]
    assert jaccard(texts[0], texts[2]) < 0.45 < 0.55 < min(jaccard(*texts[:2]), jaccard(*texts[1:]))
    assert found_in(texts) == [False, True, True]
    assert found_in(texts, removed=[1]) == [False, False, False]


def test_white_space_and_empty_texts() -> None:
    assert found_in(["春 が\n来た。", "春が来た。", "", " ", "あ"]) == [False, True, False, True, False]
    assert found_in([]) == []


def test_many_copies_of_one_text_leave_one() -> None:
    rng = random.Random(4)
    text = sentences(rng, 10)
    texts = ["".join([*text[:place], *sentences(rng, 1), *text[place + 1 :]]) for place in range(10) for _ in range(30)]
    assert found_in(texts).count(False) == 1


@given(
    keys=st.lists(st.sampled_from([0, 1, 2**63, 2**64 - 1, 5, 2**40]), max_size=30),
    most=st.integers(1, 7),
    out=st.sets(st.integers(0, 29)),
)
def test_ranges_together_are_a_stable_sort(keys: list[int], most: int, out: set[int]) -> None:
    array = np.array(keys, np.uint64)
    left_out = np.array([place in out for place in range(len(keys))], bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.duplicates, "MAX_SORTED", most)
        ranges = list(sorted_ranges(len(keys), lambda: iter(np.array_split(array, 4)), left_out))
    found = [(int(key), int(place)) for some, places in ranges for key, place in zip(some, places, strict=True)]
    assert found == sorted((key, place) for place, key in enumerate(keys) if place not in out)
    assert len(ranges) == -(-len(keys) // most)


@given(
    pairs=st.lists(st.tuples(st.sampled_from([7, 8, 2**63]), st.sampled_from([0, 1, 2])), max_size=40),
    most=st.integers(1, 50),
)
def test_exact_repeats_are_what_a_set_says(pairs: list[tuple[int, int]], most: int) -> None:
    digests = np.array(pairs, np.uint64).reshape(-1, 2)

    def pieces() -> Iterator[np.ndarray]:
        return iter(np.array_split(digests, 3))

    seen: set[tuple[int, int]] = set()
    expected: list[bool] = []
    for pair in pairs:
        expected.append(pair in seen)
        seen.add(pair)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.duplicates, "MAX_SORTED", most)
        assert exact_duplicates(len(pairs), pieces).tolist() == expected


def test_contradicting_configs() -> None:
    names = ("similarity", "bands", "ngram_characters", "band_permutations")
    wrong: list[tuple[str, Any]] = [("similarity", 1.1), *((name, 0) for name in names)]
    for name, value in wrong:
        with refuses("out-of-range", wanted=name, got=str(value)):
            NearDuplicatesConfig(**{name: value})
