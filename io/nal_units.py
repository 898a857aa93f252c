"""Which pictures of an H.264 or HEVC stream no other picture is predicted from, read off the packets.

Such a picture need not be decoded for the sake of the others: leaving it out changes no pixel of theirs. H.264 says so
in nal_ref_idc (ITU-T H.264, 7.4.1). HEVC says it for one temporal sub-layer at a time (ITU-T H.265, 7.4.2.2), so there
it holds for the highest sub-layer of the stream only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

H264_SLICES = range(1, 6)
H264_ENTRY = 5  # IDR
HEVC_SLICES = range(32)
HEVC_ENTRIES = range(16, 24)  # IRAP
# the even ones among these types are pictures that their own sub-layer does not refer to
HEVC_SUB_LAYER_TYPES = range(15)


@dataclass(frozen=True, slots=True)
class NalFormat:
    """How a stream's packets are divided.

    Attributes:
        hevc: HEVC; otherwise H.264.
        length_size: bytes of the length before every unit; 0 where start codes divide them.
    """

    hevc: bool
    length_size: int


def nal_format(codec_context: Any) -> NalFormat | None:
    """Return how the stream's packets are divided, or None for other codecs."""
    name = codec_context.name
    if name not in ("h264", "hevc"):
        return None
    extra, hevc = bytes(codec_context.extradata or b""), name == "hevc"
    place = 21 if hevc else 4  # of lengthSizeMinusOne in hvcC and avcC
    lengths = len(extra) > place and extra[0] == 1
    return NalFormat(hevc, (extra[place] & 3) + 1 if lengths else 0)


class PictureKind(NamedTuple):
    """What the packet of one picture says about it.

    Attributes:
        spare: no picture of its own layer is predicted from it.
        layer: its temporal sub-layer.
        entry: it is predicted from no other picture, and a decoder can start with it.
    """

    spare: bool
    layer: int
    entry: bool


def picture_kind(packet: Any, form: NalFormat | None) -> PictureKind:
    """Return what the packet says about its picture; of codecs without a format nothing is known."""
    spare, layer, entry = [], 0, []
    if form is not None:
        data = memoryview(packet)
        for at in _units(data, form.length_size):
            if not form.hevc and (kind := data[at] & 31) in H264_SLICES:
                spare.append(not data[at] & 0x60)
                entry.append(kind == H264_ENTRY)
            elif form.hevc and (kind := data[at] >> 1 & 63) in HEVC_SLICES:
                spare.append(kind in HEVC_SUB_LAYER_TYPES and kind % 2 == 0)
                entry.append(kind in HEVC_ENTRIES)
                layer = max(layer, (data[at + 1] & 7) - 1)
    return PictureKind(bool(spare) and all(spare), layer, bool(entry) and all(entry))


def _units(data: memoryview, length_size: int) -> Iterator[int]:
    """Yield where each unit's header lies; two bytes can be read there."""
    at, end = 0, len(data) - 2
    if length_size:
        while at + length_size <= end:
            yield at + length_size
            at += length_size + int.from_bytes(data[at : at + length_size], "big")
        return
    raw = bytes(data)
    while (at := raw.find(b"\x00\x00\x01", at)) >= 0 and at + 3 <= end:
        at += 3
        yield at
