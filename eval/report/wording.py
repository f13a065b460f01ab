"""How the report writes numbers: sizes, durations, shares and intervals as text, and text that is safe inside Markdown.

Pure functions of plain values. `None` becomes a dash, so that no template prints a number that was not measured.
"""

from collections.abc import Sequence

NOT_MEASURED = "–"  # noqa: RUF001 - an en dash marks an empty cell of a table


def number(value: float | None, *, digits: int = 3) -> str:
    """A plain number with `digits` significant digits: 1,234, 12.3, 0.0317, 3.2e-6."""
    if value is None:
        return NOT_MEASURED
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    mantissa, has_exponent, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if has_exponent else mantissa


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return NOT_MEASURED if value is None else f"{round(value):,}"


def short_count(value: float | None) -> str:
    """A count to three digits with its multiple: 3.41M, 152k."""
    return _scaled(value, {1e12: "T", 1e9: "B", 1e6: "M", 1e3: "k", 0.0: ""})


def size(value_bytes: float | None) -> str:
    """Bytes in decimal units, as phones show them."""
    return _scaled(value_bytes, {1e12: " TB", 1e9: " GB", 1e6: " MB", 1e3: " kB", 0.0: " B"})


def _scaled(value: float | None, units: dict[float, str]) -> str:
    """Three digits in the largest unit that is not above the value, by what these digits show: 999.5k is 1M."""
    if value is None:
        return NOT_MEASURED
    unit = next(unit for unit in units if abs(value) >= unit * 0.9995)
    if unit and abs(value) < unit * 999.5:
        return f"{value / unit:.3g}{units[unit]}"
    return f"{value / (unit or 1):,.0f}{units[unit]}"


def duration(seconds: float | None) -> str:
    """Seconds in readable units: 0.4 s, 42 s, 3 min 05 s, 2 h 10 min."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(share: float | None, *, decimals: int = 1) -> str:
    """A share of one as percent, without the sign: 0.7321 is 73.2."""
    return NOT_MEASURED if share is None else f"{100 * share:.{decimals}f}"


def percent_interval(interval: Sequence[float] | None) -> str:
    """An interval of shares, both ends in percent."""
    return NOT_MEASURED if interval is None else " to ".join(map(percent, interval))


def signed(value: float | None, *, decimals: int = 3) -> str:
    """A difference with its sign; a minus sign, not a hyphen."""
    return NOT_MEASURED if value is None else f"{value:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def sentence(text: str) -> str:
    """Text with a capital first letter and the rest unchanged."""
    return text[:1].upper() + text[1:]


def markdown(text: object) -> str:
    """Text as one line that Markdown shows literally: it opens or closes no markup, HTML or table cell."""
    escaped = str(text).replace("\\", "\\\\")
    for character in "`*_[]|#":
        escaped = escaped.replace(character, "\\" + character)
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(escaped.split())
