"""What a run stacks with: the logistic stacker, the boosted one, or a mean of the two, weighted as held out best.

"Any action" always comes from the logistic one: a curve of one class gives trees nothing to share between classes.
"""

from dataclasses import dataclass
from pathlib import Path

from talstack.ensemble.boosted import BoostedStacker
from talstack.ensemble.curves import Curves
from talstack.ensemble.evidence import Evidence
from talstack.ensemble.stacker import Stacker
from talstack.io.files import read_json

# of the boosted stacker in the probabilities; one of them is chosen on held-out recordings
SHARES = {"logistic": (0.0,), "gbm": (1.0,), "both": (0.0, 0.25, 0.5, 0.75, 1.0)}


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The fitted stackers of a run.

    Attributes:
        logistic: predicts actions and any action.
        boosted: predicts actions; None where its share is 0.
        share: weight of the boosted stacker's probabilities against the logistic one's, 0 to 1.
    """

    logistic: Stacker
    boosted: BoostedStacker | None = None
    share: float = 0.0

    def predict(self, evidence: Evidence) -> Curves:
        """Return the probabilities of every action and of any action for all segments of `evidence`.

        Raises:
            ModelError: the evidence has other actions or scenes.
        """
        curves = self.logistic.predict(evidence)
        if self.boosted is None:
            return curves
        action = (1.0 - self.share) * curves.action + self.share * self.boosted.predict(evidence)
        return Curves(curves.index, action, curves.activity)

    def save(self, folder: Path) -> None:
        """Write the stackers into the folder; files of a boosted one that is not part of it are removed."""
        if self.boosted is None:
            for name in ("boosted.json", "boosted.lightgbm.txt"):
                (folder / name).unlink(missing_ok=True)
        else:
            self.boosted.save(folder)
        self.logistic.save(folder, share=self.share)

    @classmethod
    def load(cls, folder: Path) -> "Stack":
        """Read what `save` wrote.

        Raises:
            MissingInputError: there is none.
            ModelError: a damaged file or another format.
        """
        logistic = Stacker.load(folder)
        share = float(read_json(folder / "stacker.json").get("boosted_share", 0.0))
        return cls(logistic, BoostedStacker.load(folder) if share else None, share)
