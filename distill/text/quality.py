"""Quality rules for Japanese web text: each judges one document alone and has a name that a data card counts.

The rules follow the published code of the Swallow corpus (Okazaki et al., COLM 2024, arXiv 2404.17733; `apply_v1` of
its quality annotation), which takes its repetition rules from MassiveText (Rae et al., arXiv 2112.11446, appendix
A.1.1) and applies them to characters instead of words. Those thresholds are for a crawl that can lose good pages: of
4,661 sound documents (encyclopaedia, literature, two reference manuals) they remove 57 %, and 38 % without their
smallest length. Ours are wider and remove 0.4 % of them, and none of this product's embedded world; our own rules on
prose, web furniture and damage make up for it. Each field of `QualityConfig` gives the published value and, where ours
differs, the values of sound documents.

The terms are those of `distill.text.measures`. Texts are in their normal form (`distill.text.normalise`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from common.errors import UserError
from distill.text.measures import Measures


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityConfig:
    """Thresholds of the rules; None, or () for n-grams, turns a rule off. Shares are 0 to 1."""

    min_characters: int | None = 20
    """Characters. Published: 400, which a quarter of the sound documents lack; the shortest have 40."""
    min_japanese_share: float | None = 0.3
    """Japanese among all characters. Published: 0.5; translated sentences go down to 0.37, manuals to 0.44."""
    min_kana_share: float | None = 0.05
    """Kana among the letters: Chinese has none. Not published: replaces `min_hiragana_share`."""
    min_hiragana_share: float | None = None
    """Hiragana among the letters. Published: 0.2; off, since encyclopaedia articles that are lists go down to 0.05,
    and laws and literature up to 1945 can have all their kana in katakana."""
    max_katakana_share: float | None = 0.8
    """Katakana among the letters. Published: 0.5; short paragraphs of manuals reach 0.73."""
    max_digit_share: float | None = 0.35
    """Digits among all characters. Not published; worked sums reach 0.3, chronicles of emperors 0.25."""
    max_symbol_share: float | None = 0.25
    """Characters except letters, Latin letters, digits and Japanese punctuation. Not published; manuals reach 0.18."""
    max_damage_share: float | None = 0.01
    """Traces of a wrong encoding among all characters (`damage` of quality_words.toml). Not published; foreign names
    reach 0.005."""
    min_mean_sentence_characters: float | None = 6
    """Mean length of a sentence, characters; line ends end sentences too. Published: 20; records and lists go down
    to 8."""
    max_mean_sentence_characters: float | None = 300
    """As above. Published: 90; Meiji prose reaches 165, articles whose lists lost their line ends 247."""
    max_sentence_characters: int | None = None
    """Longest sentence, characters. Published: 200; off, since a quarter of the literature and 6 % of the encyclopaedia
    have a longer one."""
    max_ellipsis_share: float | None = 0.2
    """Lines cut short by an ellipsis among all lines. Published: 0.2 of the sentences; here a double ellipsis, in which
    poems and dialogue end, does not count."""
    max_unwanted_share: float | None = 0.05
    """Characters in words of spam (`unwanted` of quality_words.toml), from three words on. Published: 0.05, without
    the list of words."""
    max_boilerplate_share: float | None = 0.08
    """Characters in words of web furniture (`boilerplate`), from three words on. Not published, since Swallow extracts
    its text from HTML itself; manuals of web software reach 0.03."""
    min_prose_share: float | None = 0.2
    """Characters in lines with a statement: lines with a sentence end, a record ("label: value" with a full-width
    colon), or 20 characters or more with the hiragana of a clause, as in verse. Not published; menus, keywords and
    headlines have none, and all but four sound documents more."""
    max_duplicate_line_share: float | None = 0.6
    """Lines that repeat an earlier one among all lines. Published: 0.3; manuals that repeat the line of a parameter
    under each method reach 0.6, except three."""
    max_duplicate_line_character_share: float | None = 0.6
    """Characters of these lines among all. Published: 0.2; as above, except five."""
    top_grams: tuple[tuple[int, float], ...] = ((2, 0.20), (3, 0.18), (4, 0.16))
    """(n, largest share of all character n-grams for the most frequent one, if it occurs twice). As published."""
    duplicate_grams: tuple[tuple[int, float], ...] = ((10, 0.85),)
    """(n, largest share of the character n-grams that belong to one occurring more than once). Published: 0.15 for 5
    and one hundredth less for each n up to 10, which 90 % of the manuals and 30 % of the literature exceed."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, tuple):
                sound = all(size >= 1 and 0 <= share <= 1 for size, share in value)
            else:
                sound = value is None or 0 <= value <= (1 if name.endswith("share") else value)
            if not sound:
                wanted = "shares from 0 to 1, lengths of at least 0, n-grams as pairs of a length and a share"
                got, next_step = f"{name} = {value}", f"correct {name} of the quality rules"
                raise UserError("out-of-range", wanted=wanted, got=got, next_step=next_step)


def fault(text: str, config: QualityConfig) -> str | None:
    """The name of the first rule that removes the document; None if it is kept."""
    measures = Measures(text)
    return next((rule for rule, breaks in QUALITY_RULES.items() if breaks(measures, config)), None)


def _below(value: float, least: float | None) -> bool:
    return least is not None and value < least


def _above(value: float, most: float | None) -> bool:
    return most is not None and value > most


def _repeats_lines(measures: Measures, config: QualityConfig) -> bool:
    lines, characters = measures.duplicate_lines
    most_characters = config.max_duplicate_line_character_share
    return _above(lines, config.max_duplicate_line_share) or _above(characters, most_characters)


def _has_odd_sentences(measures: Measures, config: QualityConfig) -> bool:
    lengths = measures.sentences
    mean = int(lengths.sum()) / max(1, len(lengths))
    return (
        _below(mean, config.min_mean_sentence_characters)
        or _above(mean, config.max_mean_sentence_characters)
        or _above(int(lengths.max(initial=0)), config.max_sentence_characters)
    )


# In the order of their evaluation: cheap rules first, specific ones before general ones.
QUALITY_RULES: dict[str, Callable[[Measures, QualityConfig], bool]] = {
    "too short": lambda m, c: _below(m.characters, c.min_characters),
    "broken encoding": lambda m, c: _above(m.damage_share, c.max_damage_share),
    "little Japanese": lambda m, c: _below(m.japanese_share, c.min_japanese_share),
    "little kana": lambda m, c: (
        _below(m.kana_share, c.min_kana_share) or _below(m.hiragana_share, c.min_hiragana_share)
    ),
    "much katakana": lambda m, c: _above(m.katakana_share, c.max_katakana_share),
    "many digits": lambda m, c: _above(m.digit_share, c.max_digit_share),
    "many symbols": lambda m, c: _above(m.symbol_share, c.max_symbol_share),
    "sentence length": _has_odd_sentences,
    "cut short": lambda m, c: _above(m.ellipsis_share, c.max_ellipsis_share),
    "spam words": lambda m, c: _above(m.word_shares[1], c.max_unwanted_share),
    "web furniture": lambda m, c: _above(m.word_shares[0], c.max_boilerplate_share),
    "no prose": lambda m, c: _below(m.prose_share, c.min_prose_share),
    "repeated lines": _repeats_lines,
    "repeated n-gram": lambda m, c: any(m.has_top_gram(n, share) for n, share in c.top_grams),
    "repeated passages": lambda m, c: any(m.duplicate_gram_share(n) > share for n, share in c.duplicate_grams),
}
