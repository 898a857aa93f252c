"""Names of views that are made from another view.

`panoramic@yaw090` is what a camera turned by 90 degrees sees of `panoramic`, `binocular@left` its left half. A view
that has a file of its own has no `@` in its name. The part behind it says which piece of the picture it is, in letters
and digits, so that the name is the same everywhere and may stand in a file's name.
"""

import re

from talstack.io.errors import InputError

SEPARATOR = "@"
PART = re.compile(r"[a-z0-9]+")


def derived_view(view: str, part: str) -> str:
    """Return the name of a piece of a view.

    Raises:
        InputError: the view is itself a piece or has no name, or the part is not of lower-case letters and digits.
    """
    if not view or SEPARATOR in view:
        raise InputError(f"view {view!r}: expected a name without {SEPARATOR!r}, which marks pieces of a view")
    if not PART.fullmatch(part):
        raise InputError(f"{view}: the name of a piece must be lower-case letters and digits, got {part!r}")
    return f"{view}{SEPARATOR}{part}"


def split_view(name: str) -> tuple[str, str | None]:
    """Return (view with a file of its own, piece of it); the piece is None for such a view itself."""
    view, separator, part = name.partition(SEPARATOR)
    return (view, part) if separator else (name, None)
