"""How numbers are written for people: a small pure function for each kind, for pages, tables and messages."""

from __future__ import annotations

MINUS = "\N{MINUS SIGN}"


def capital(words: str) -> str:
    """Begin with a capital letter, and leave the rest.

    >>> capital("mean IoU"), capital("top-1")
    ('Mean IoU', 'Top-1')
    """
    return words[:1].upper() + words[1:]


def bytes_exact(count: int) -> str:
    """Write every digit.

    >>> bytes_exact(1234567)
    '1,234,567'
    """
    return f"{count:,}"


def bytes_human(count: int) -> str:
    """Three digits and a decimal unit (MB = 10^6 bytes).

    >>> bytes_human(999), bytes_human(45_678), bytes_human(1_234_567), bytes_human(22_049_000)
    ('999 B', '45.7 kB', '1.23 MB', '22.0 MB')
    """
    return _scaled(count, (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)), "B")


def count_human(count: int) -> str:
    """Three digits and a decimal unit, for parameters and multiply-accumulates.

    >>> count_human(1_518_594), count_human(810)
    ('1.52 M', '810')
    """
    return _scaled(count, (("G", 10**9), ("M", 10**6), ("k", 10**3)), "").strip()


def percent(fraction: float) -> str:
    """An accuracy or agreement, 0 to 1, with two decimals.

    >>> percent(0.99333)
    '99.33 %'
    """
    return f"{100 * fraction:.2f} %"


def zeros(fraction: float) -> str:
    """A fraction of zeros, 0 to 1, with one decimal.

    >>> zeros(0.7961)
    '79.6 %'
    """
    return f"{100 * fraction:.1f} %"


def points(lost: float) -> str:
    """Percentage points with two decimals; a gain is negative.

    >>> points(0.2222), points(-0.4444), points(-0.001)
    ('0.22', '−0.44', '0.00')
    """
    text = f"{abs(lost):.2f}"
    return text if lost >= 0 or float(text) == 0 else MINUS + text


def points_with_error(lost: float, error: float | None) -> str:
    """Percentage points and their standard error, where it is known.

    >>> points_with_error(0.2222, 0.314), points_with_error(-0.4444, None)
    ('0.22 ± 0.31', '−0.44')
    """
    return points(lost) if error is None else f"{points(lost)} ± {error:.2f}"


def points_fine(lost: float) -> str:
    """Percentage points with the digits that matter against a limit.

    >>> points_fine(0.22222), points_fine(1.0)
    ('0.2222', '1')
    """
    return f"{round(lost, 4):g}"


def points_lost(lost: float) -> str:
    """Percentage points in words.

    >>> points_lost(0.2222), points_lost(-0.4444), points_lost(0.0)
    ('0.22 points lost', '0.44 points gained', 'nothing lost')
    """
    text = f"{abs(lost):.2f}"
    if float(text) == 0:
        return "nothing lost"
    return f"{text} points {'lost' if lost > 0 else 'gained'}"


def times(ratio: float) -> str:
    """How many times smaller.

    >>> times(5.449), times(23.96)
    ('5.4×', '24×')
    """
    return f"{ratio:.0f}×" if ratio >= 19.95 else f"{ratio:.1f}×"


def bits(per_weight: float) -> str:
    """Stored bits per weight.

    >>> bits(2.6149)
    '2.61'
    """
    return f"{per_weight:.2f}"


def error(relative: float) -> str:
    """A relative error: two digits and an exponent.

    >>> error(0.000312)
    '3.1e-04'
    """
    return f"{relative:.1e}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, to the precision a person cares for.

    >>> duration(7.26), duration(94.4), duration(3725)
    ('7.3 s', '1 min 34 s', '1 h 2 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def milliseconds(time_ms: float) -> str:
    """A time on a runtime: three digits.

    >>> milliseconds(0.4567), milliseconds(12.34), milliseconds(345.6)
    ('0.457 ms', '12.3 ms', '346 ms')
    """
    decimals = 3 if time_ms < 0.9995 else 2 if time_ms < 9.995 else 1 if time_ms < 99.95 else 0
    return f"{time_ms:.{decimals}f} ms"


def strength(number: float) -> str:
    """How strong a corruption is, or a sparsity: no more digits than it was set with.

    >>> strength(0.05), strength(15.0)
    ('0.05', '15')
    """
    return f"{number:g}"


def confidence(softmax: float) -> str:
    """A softmax, 0 to 1, in whole percent.

    >>> confidence(0.4958)
    '50 %'
    """
    return f"{100 * softmax:.0f} %"


def shape(sizes: list[int] | tuple[int, ...]) -> str:
    """The shape of a weight.

    >>> shape((96, 24, 1, 1))
    '96×24×1×1'
    """
    return "×".join(str(size) for size in sizes)


def plain(value: object) -> str:
    """Any value of a recipe or an environment, as it was set.

    >>> plain(None), plain(True), plain(0.5), plain([64, 64]), plain([])
    ('not set', 'yes', '0.5', '64, 64', 'none')
    """
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value) or "none"
    return str(value)


def _scaled(count: int, units: tuple[tuple[str, int], ...], smallest: str) -> str:
    for unit, size in units:
        # Rounded up to the next unit where three digits would write 1000: 999,950 bytes are 1.00 MB.
        if count >= size * 0.9995:
            value = count / size
            decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{decimals}f} {unit}"
    return f"{count} {smallest}"
