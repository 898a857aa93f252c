"""What a run stacks with: a logistic stacker, a boosted one or both, and half of it a plain weighted mean.

The two stackers are mixed by the share that is best held out. "Any action" always comes from the logistic one: a curve
of one class gives trees nothing to share between classes. Stackers know the classes better than any mean does, but
bend the curves at the ends of actions; the mean of the models weighted by class does not (docs/decisions, 18).
"""

from dataclasses import dataclass
from pathlib import Path

from talstack.ensemble.boosted import BoostedStacker
from talstack.ensemble.curves import Curves
from talstack.ensemble.evidence import Evidence
from talstack.ensemble.stacker import Stacker
from talstack.ensemble.weighted import ClassMean
from talstack.io.errors import ModelError
from talstack.io.files import read_json, sha256_file, write_json

# of the boosted stacker in the stackers' probabilities; one of them is chosen on held-out recordings
SHARES = {"logistic": (0.0,), "gbm": (1.0,), "both": (0.0, 0.25, 0.5, 0.75, 1.0)}
MEAN_FILE = "stack_mean.json"


def mixed(stacked: Curves, mean: Curves, share: float) -> Curves:
    """Return the stackers' curves with a share of the mean's."""
    action = (1.0 - share) * stacked.action + share * mean.action
    return Curves(stacked.index, action, (1.0 - share) * stacked.activity + share * mean.activity)


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The fitted stackers of a run.

    Attributes:
        logistic: predicts actions and any action.
        boosted: predicts actions; None where its share is 0.
        share: weight of the boosted stacker's probabilities against the logistic one's, 0 to 1.
        mean: the mean of the models weighted by class; None where its share is 0.
        mean_share: weight of the mean against the stackers, 0 to 1.
    """

    logistic: Stacker
    boosted: BoostedStacker | None = None
    share: float = 0.0
    mean: ClassMean | None = None
    mean_share: float = 0.0

    def predict(self, evidence: Evidence) -> Curves:
        """Return the probabilities of every action and of any action for all segments of `evidence`.

        Raises:
            ModelError: the evidence has other actions or scenes.
        """
        curves = self.logistic.predict(evidence)
        if self.boosted is not None:
            action = (1.0 - self.share) * curves.action + self.share * self.boosted.predict(evidence)
            curves = Curves(curves.index, action, curves.activity)
        return curves if self.mean is None else mixed(curves, self.mean.predict(evidence), self.mean_share)

    def save(self, folder: Path) -> None:
        """Write the parts into the folder; files of a part that it does not have are removed."""
        if self.boosted is None:
            for name in ("boosted.json", "boosted.lightgbm.txt"):
                (folder / name).unlink(missing_ok=True)
        else:
            self.boosted.save(folder)
        parts: dict[str, float | str] = {"boosted_share": self.share, "mean_share": self.mean_share}
        (folder / MEAN_FILE).unlink(missing_ok=True)
        if self.mean is not None:
            write_json(folder / MEAN_FILE, self.mean.to_json())
            parts["mean_sha256"] = sha256_file(folder / MEAN_FILE)
        self.logistic.save(folder, **parts)

    @classmethod
    def load(cls, folder: Path) -> "Stack":
        """Read what `save` wrote.

        Raises:
            MissingInputError: there is none.
            ModelError: a damaged file or another format.
        """
        logistic, card = Stacker.load(folder), read_json(folder / "stacker.json")
        share, mean_share = (float(card.get(name, 0.0)) for name in ("boosted_share", "mean_share"))
        mean = _load_mean(folder / MEAN_FILE, card.get("mean_sha256")) if mean_share else None
        return cls(logistic, BoostedStacker.load(folder) if share else None, share, mean, mean_share)


def _load_mean(path: Path, sha256: object) -> ClassMean:
    try:
        if sha256_file(path) != sha256:
            raise ModelError(f"{path}: has changed since talstack wrote it; run `talstack submit` again")
        return ClassMean.from_json(read_json(path))
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ModelError(f"{path}: not what talstack writes ({error!r}); run `talstack submit` again") from error
