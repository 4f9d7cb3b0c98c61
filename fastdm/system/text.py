"""Numbers and texts as people read them."""

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size_text(count: float) -> str:
    """A number of bytes: "512 bytes", "3.4 MiB", "17 TiB"."""
    power = 0
    while power + 1 < len(_UNITS) and count >= 1023.5:
        count /= 1024
        power += 1
    if power == 0:
        return f"{count:.0f} {'byte' if round(count) == 1 else 'bytes'}"
    return f"{count:.1f} {_UNITS[power]}" if count < 9.95 else f"{count:,.0f} {_UNITS[power]}"


def printable(text: object) -> str:
    r"""A text from a file or a path as one line that a terminal only shows: what is not printable as `\x1b`."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in str(text)
    )


def duration_text(seconds: float) -> str:
    """A time: "0.85 ms", "12 s", "3.4 min", "19 h", "12 days"."""
    for unit, size, end in (("ms", 1e-3, 1), ("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < end:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:,.0f} days" if seconds >= 864_000 else f"{seconds / 86_400:.2g} days"
