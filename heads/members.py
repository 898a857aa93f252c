"""The files of a head's models: the one fitted on all training recordings, or those of the folds.

<head>.json names either its own files (`talstack.heads.model`) or, where the mean of the fold models predicts, those
of its members, `<head>.fold<number>`, each of which is a head of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talstack.heads.model import FORMAT_VERSION, TrainedHead, read_card, write_card
from talstack.io.errors import ModelError
from talstack.io.files import sha256_file

REFITTED = -1  # the number of the model that was fitted on all


def save_models(heads: Mapping[int, TrainedHead], folder: Path) -> dict[str, Any]:
    """Write the models of a head by fold; return its card, which the caller completes and hands to `write_card`."""
    if REFITTED in heads:
        return heads[REFITTED].save(folder)
    members: dict[str, str] = {}
    files: dict[str, str] = {}
    for fold, head in sorted(heads.items()):
        stem = f"{head.key.head}.fold{fold}"
        card = head.save(folder, stem)
        path = folder / f"{stem}.json"
        write_card(path, card)
        members[str(fold)] = path.name
        files |= {**card["files"], path.name: sha256_file(path)}
    return {"format_version": FORMAT_VERSION, "members": members, "files": files}


def load_models(card_file: Path) -> dict[int, TrainedHead]:
    """Return the models of a head by fold, whose mean predicts; the one of all alone, under `REFITTED`.

    Raises:
        ModelError: a file is missing, damaged or foreign.
    """
    members = read_card(card_file).get("members")
    if members is None:
        return {REFITTED: TrainedHead.load(card_file)}
    try:
        cards = {int(fold): card_file.with_name(Path(name).name) for fold, name in members.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{card_file}: not the card of a head ({error}); run `talstack heads` again") from error
    if not cards:
        raise ModelError(f"{card_file}: a head without models; run `talstack heads` again")
    return {fold: TrainedHead.load(path) for fold, path in cards.items()}
