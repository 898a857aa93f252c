import pytest

from talstack.io.errors import InputError
from talstack.io.view_names import derived_view, split_view


def test_a_piece_of_a_view_leads_back_to_it() -> None:
    name = derived_view("panoramic", "yaw090up30")
    assert name == "panoramic@yaw090up30"
    assert split_view(name) == ("panoramic", "yaw090up30")
    assert split_view("third_person") == ("third_person", None)


def test_names_that_would_be_ambiguous_are_refused() -> None:
    with pytest.raises(InputError, match="'panoramic@yaw090': expected a name without '@'"):
        derived_view("panoramic@yaw090", "left")
    for part in ("", "a/b", "Yaw", "../x", "yaw-5"):
        with pytest.raises(InputError, match="panoramic: the name of a piece"):
            derived_view("panoramic", part)
