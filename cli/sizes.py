"""Bytes and times as people read them."""

DAY_S = 86400


def bytes_text(num_bytes: int) -> str:
    """Return a size such as "1.2 GB"."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def age_text(changed_s: float | None, now_s: float) -> str:
    """Return how long ago a time (seconds since 1970) was, such as "3.5 days"; "-" for None."""
    if changed_s is None:
        return "-"
    age_s = max(0.0, now_s - changed_s)
    if age_s >= DAY_S:
        return f"{age_s / DAY_S:.1f} days"
    return f"{age_s / 3600:.1f} h" if age_s >= 3600 else f"{age_s / 60:.0f} min"
