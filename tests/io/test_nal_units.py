"""What the first bytes of a picture say, in both ways of dividing units."""

import pytest

from talstack.io.nal_units import NalFormat, picture_kind


def lengths(*units):
    return b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)


def codes(*units):
    return b"".join(b"\x00\x00\x01" + unit for unit in units)


def h264(kind, ref):
    return bytes([ref << 5 | kind]) + b"\x88\x84\x21"


def hevc(kind, layer=0):
    return bytes([kind << 1, layer + 1]) + b"\xaf\x15\x21"


@pytest.mark.parametrize(("divide", "size"), [(lengths, 4), (codes, 0)])
def test_kinds_of_pictures(divide, size):
    avc, hvc = NalFormat(False, size), NalFormat(True, size)
    sei, parameters = h264(6, 0), h264(7, 3)
    assert picture_kind(divide(parameters, sei, h264(5, 3)), avc) == (False, 0, True)
    assert picture_kind(divide(sei, h264(1, 0), h264(1, 0)), avc) == (True, 0, False)
    # one slice that others refer to is enough, and a picture without slices says nothing
    assert picture_kind(divide(h264(1, 0), h264(1, 2)), avc) == (False, 0, False)
    assert picture_kind(divide(sei), avc) == (False, 0, False)
    assert picture_kind(divide(hevc(32), hevc(20)), hvc) == (False, 0, True)
    assert picture_kind(divide(hevc(0, 2)), hvc) == (True, 2, False)
    assert picture_kind(divide(hevc(1, 1)), hvc) == (False, 1, False)
    assert picture_kind(divide(hevc(9)), hvc) == (False, 0, False)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00\x00\x01", b"\xff" * 9, b"\x00" * 40, lengths(b"\x01")])
def test_broken_packets_say_nothing(data):
    for form in (None, NalFormat(False, 4), NalFormat(True, 4), NalFormat(False, 0), NalFormat(True, 0)):
        assert not picture_kind(data, form).entry
