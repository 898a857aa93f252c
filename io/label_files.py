"""Detections of one recording for people who look: WebVTT chapters, ELAN annotations, an Audacity label track.

Rows are in ascending start. In WebVTT and Audacity, whose labels are one line, white space in a label becomes single
spaces. Times are rounded to milliseconds (Audacity: microseconds), and what would round to nothing lasts one.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import polars as pl

SUFFIXES = {"vtt": ".vtt", "eaf": ".eaf", "audacity": ".txt"}
EAF_SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"
EAF_TYPE = "action"
EAF_DATE = "2000-01-01T00:00:00+00:00"  # the format wants one; today's would change a file whose content did not
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
UNSAFE_IN_A_NAME = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|%]|^\.')


def file_name(recording: str, format: str) -> str:
    """Return the name of a recording's file: what a file system may refuse is percent-encoded."""
    return (
        UNSAFE_IN_A_NAME.sub(lambda found: quote(found[0], safe="").replace(".", "%2E"), recording) + SUFFIXES[format]
    )


def vtt_text(detections: pl.DataFrame) -> str:
    """Return WebVTT chapters: one cue per detection, its label as text and its score in the cue's name.

    Args:
        detections: table (start_s, end_s, label, score) of one recording.
    """
    cues = ["WEBVTT"]
    for number, (start_s, end_s, label, score) in enumerate(_rows(detections), start=1):
        start, end = _milliseconds(start_s, end_s)
        text = _one_line(label).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        cues.append(f"{number} score {score:.3f}\n{_vtt_time(start)} --> {_vtt_time(end)}\n{text}")
    return "\n\n".join(cues) + "\n"


def audacity_text(detections: pl.DataFrame) -> str:
    """Return an Audacity label track: start, end and label, divided by tabs; arguments as of `vtt_text`."""
    lines = []
    for start_s, end_s, label, _ in _rows(detections):
        start = round(start_s, 6)
        lines.append(f"{start:.6f}\t{max(round(end_s, 6), start + 1e-6):.6f}\t{_one_line(label)}\n")
    return "".join(lines)


def eaf_text(detections: pl.DataFrame, clips: Iterable[tuple[Path, float]], *, folder: Path) -> str:
    """Return an ELAN document (EAF 3.0): a tier per class, an annotation per detection with its score as value.

    Annotations of one tier must not overlap, so those that overlap an earlier one of their class go to a second tier,
    `<label> (2)`, and so on.

    Args:
        detections: table (start_s, end_s, label, score) of one recording.
        clips: media files, and where on the recording's clock their first frame lies, seconds. ELAN's TIME_ORIGIN is
            the place in the media where the document begins, so it is the negative of that.
        folder: where the document will lie; media are named by absolute and by relative path.
    """
    root = ElementTree.Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": "talstack",
            "DATE": EAF_DATE,
            "FORMAT": "3.0",
            "VERSION": "3.0",
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:noNamespaceSchemaLocation": EAF_SCHEMA,
        },
    )
    header = ElementTree.SubElement(root, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    for path, offset_s in clips:
        ElementTree.SubElement(header, "MEDIA_DESCRIPTOR", _media(path, offset_s, folder))
    spans = [(*_milliseconds(start_s, end_s), label, score) for start_s, end_s, label, score in _rows(detections)]
    slots = ElementTree.SubElement(root, "TIME_ORDER")
    for place, value in enumerate(sorted({time for start, end, *_ in spans for time in (start, end)}), start=1):
        ElementTree.SubElement(slots, "TIME_SLOT", {"TIME_SLOT_ID": f"ts{place}", "TIME_VALUE": str(value)})
    slot_of = {int(slot.attrib["TIME_VALUE"]): slot.attrib["TIME_SLOT_ID"] for slot in slots}
    _add_tiers(root, spans, slot_of)
    kind = {"LINGUISTIC_TYPE_ID": EAF_TYPE, "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"}
    ElementTree.SubElement(root, "LINGUISTIC_TYPE", kind)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _add_tiers(
    root: ElementTree.Element, spans: Sequence[tuple[int, int, str, float]], slot_of: dict[int, str]
) -> None:
    number = 0
    taken: set[str] = set()
    for label in sorted({label for *_, label, _ in spans}):
        for rows in _lanes([span for span in spans if span[2] == label]):
            tier = ElementTree.SubElement(
                root, "TIER", {"LINGUISTIC_TYPE_REF": EAF_TYPE, "TIER_ID": _free_name(label, taken)}
            )
            for start, end, _, score in rows:
                number += 1
                annotation = ElementTree.SubElement(
                    ElementTree.SubElement(tier, "ANNOTATION"),
                    "ALIGNABLE_ANNOTATION",
                    {
                        "ANNOTATION_ID": f"a{number}",
                        "TIME_SLOT_REF1": slot_of[start],
                        "TIME_SLOT_REF2": slot_of[end],
                    },
                )
                ElementTree.SubElement(annotation, "ANNOTATION_VALUE").text = f"{score:.3f}"


def _lanes(spans: Sequence[tuple[int, int, str, float]]) -> list[list[tuple[int, int, str, float]]]:
    """Return the spans, ascending by start, in as few lists as have no overlap within."""
    lanes: list[list[tuple[int, int, str, float]]] = []
    for span in spans:
        lane = next((lane for lane in lanes if lane[-1][1] <= span[0]), None)
        if lane is None:
            lanes.append([span])
        else:
            lane.append(span)
    return lanes


def _free_name(label: str, taken: set[str]) -> str:
    """Return the label, or `label (2)`, ... where it is taken; adds it to those."""
    plain = NOT_IN_XML.sub("\ufffd", label)
    name, count = plain, 1
    while name in taken:
        count += 1
        name = f"{plain} ({count})"
    taken.add(name)
    return name


def _media(path: Path, offset_s: float, folder: Path) -> dict[str, str]:
    path, folder = path.resolve(), folder.resolve()
    mime = {".mp4": "video/mp4", ".mov": "video/quicktime", ".wav": "audio/x-wav"}.get(path.suffix.lower(), "unknown")
    relative = Path(os.path.relpath(path, folder)).as_posix()
    relative = relative if relative.startswith(".") else f"./{relative}"
    media = {"MEDIA_URL": path.as_uri(), "MIME_TYPE": mime, "RELATIVE_MEDIA_URL": quote(relative)}
    if offset_s:
        media["TIME_ORIGIN"] = str(-round(offset_s * 1000))
    return media


def _rows(detections: pl.DataFrame) -> list[tuple[float, float, str, float]]:
    ordered = detections.sort("start_s", "end_s", "label", "score")
    return ordered.select("start_s", "end_s", "label", "score").rows()


def _milliseconds(start_s: float, end_s: float) -> tuple[int, int]:
    start = round(start_s * 1000)
    return start, max(round(end_s * 1000), start + 1)


def _vtt_time(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"


def _one_line(label: str) -> str:
    return " ".join(label.replace("\0", "\ufffd").split())
