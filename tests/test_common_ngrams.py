"""Window hashes against Python's own substrings."""

from hypothesis import given
from hypothesis import strategies as st

from common.ngrams import code_points, window_hashes

TEXT = st.text(st.sampled_from("あいうab\U0001f680\ud800"), max_size=30)


@given(one=TEXT, other=TEXT, size=st.integers(1, 8))
def test_hashes_are_equal_exactly_where_substrings_are(one: str, other: str, size: int) -> None:
    windows = [text[start : start + size] for text in (one, other) for start in range(len(text) - size + 1)]
    hashes = [int(value) for text in (one, other) for value in window_hashes(code_points(text), size)]
    assert len(hashes) == len(windows)
    by_window = dict(zip(windows, hashes, strict=True))
    assert [by_window[window] for window in windows] == hashes
    assert len(set(by_window.values())) == len(by_window)


def test_every_bit_depends_on_every_character() -> None:
    base = "桜が咲く頃に"
    start = int(window_hashes(code_points(base), len(base))[0])
    for place in range(len(base)):
        flips = [
            bin(start ^ int(window_hashes(code_points(base[:place] + chr(code) + base[place + 1 :]), len(base))[0]))
            for code in range(0x4E00, 0x4E40)
        ]
        assert 24 < sum(flip.count("1") for flip in flips) / len(flips) < 40
