"""What the server remembers of one visitor: the last sample, its answer and why, for switches and for feedback.

Unusual: it is changed in place, and by the event loop alone. Two clicks of one visitor may overlap; each works under
the number of its `run`, and stops when there is a newer one. Nothing here comes back from the browser, so feedback is
about the answer that was really given.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from space import views, views_pictures
from space.inputs import MODALITIES
from space.texts import tell

if TYPE_CHECKING:
    import numpy as np

    from space.gallery import Card


@dataclass
class Visit:
    """The state of one open page.

    Attributes:
        language: of the page.
        heard: seconds of a sound after which the model stops listening; None: it hears nothing.
        run: number of the last classification.
        given: what was classified last.
        ranked: the whole answer; None: there is none.
        refusal: why there is none, in each language.
        label: whose score is explained; None: the best.
        explanation: see `pipeline.explain`; None: not there yet.
        trouble: why there are no shares, or no details, in each language.
        is_looking: details are on their way.
        heat, peaks: pictures of the details.
        off: modalities that are turned off.
        vectors: of each subset of the sample, where the server has an index to look in.
        cards: the rows of the index that are nearest to what is turned on; None: not there yet.
        cards_trouble: why there are none, in each language.
        batch: what stops the batch that runs; None: there is none.
    """

    language: str = "en"
    heard: float | None = None
    run: int = 0
    given: dict[str, Any] = field(default_factory=dict)
    ranked: list[dict] | None = None
    refusal: dict[str, str] | None = None
    label: str | None = None
    explanation: dict | None = None
    trouble: dict[str, str] | None = None
    is_looking: bool = False
    heat: str | None = None
    peaks: list[float] = field(default_factory=list)
    off: set[str] = field(default_factory=set)
    vectors: "dict[str, np.ndarray]" = field(default_factory=dict)
    cards: "list[Card] | None" = None
    cards_trouble: dict[str, str] | None = None
    batch: threading.Event | None = None

    def begin(self, given: dict[str, Any]) -> int:
        """Forget the last sample, and give the number of the new run."""
        self.given, self.ranked, self.refusal, self.off = given, None, None, set()
        self.vectors, self.cards, self.cards_trouble = {}, None, None
        return self.explain(None)

    def explain(self, label: str | None) -> int:
        """Forget the last explanation, and give the number of the new run."""
        self.label, self.explanation, self.trouble, self.is_looking = label, None, None, False
        self.heat, self.peaks = None, []
        self.run += 1
        return self.run

    def tell(self, key: str, **values: object) -> str:
        return tell(self.language, key, **values)

    @property
    def present(self) -> list[str]:
        """Modalities that the sample has, as far as they are known."""
        shares = (self.explanation or {}).get("modalities", {})
        return [name for name in MODALITIES if shares.get(name) is not None]

    @property
    def has_details(self) -> bool:
        return self.explanation is not None and self.explanation["method"] is not None


# -- what the page shows of it ----------------------------------------------------------------------------------------


def answer_panel(visit: Visit, info: Mapping[str, Any]) -> str:
    """Give the answer from what is turned on, looked up among the answers of all subsets; `info`: of the model."""
    if visit.refusal is not None:
        return views.refusal_view(visit.language, visit.refusal[visit.language])
    if visit.ranked is None:
        return views.heading(2, visit.tell("answer")) + views.note(visit.tell("answer.empty"))
    without = [name for name in visit.present if name in visit.off]
    meaning = {"problem_type": info["problem_type"], "thresholds": info["thresholds"], "without": without}
    if not without:
        return views.answer_view(visit.language, visit.ranked, **meaning)
    kept = "+".join(name for name in visit.present if name not in visit.off)
    if not kept:
        return nothing_panel(visit)
    return views.answer_view(visit.language, visit.explanation["subsets"][kept], **meaning)


def nothing_panel(visit: Visit) -> str:
    """Say what the model would give the explained label with everything turned off."""
    known = visit.explanation
    score = views.score_text(known["baseline"], known["function"])
    told = visit.tell("answer.nothing", label=known["label"], score=score)
    return views.heading(2, visit.tell("answer")) + views.note(told, "without")


def shares_panels(visit: Visit) -> dict[str, str]:
    """Give the panels about whole modalities: `contributions`, `alone` and `disagreement`."""
    if visit.explanation is None:
        waiting = waiting_view(visit, "working")
        return {"contributions": waiting, "alone": "", "disagreement": ""}
    return {
        "contributions": views.contributions_view(visit.language, visit.explanation),
        "alone": views.alone_view(visit.language, visit.explanation),
        "disagreement": views.disagreement_view(visit.language, visit.explanation),
    }


def waiting_view(visit: Visit, key: str) -> str:
    """Say what is being worked out, or why it cannot be."""
    if visit.trouble:
        return views.note(visit.trouble[visit.language])
    return views.note(visit.tell(key), "pending")


def detail_panels(visit: Visit) -> dict[str, str]:
    """Give the panels about what lies inside the modalities: `inside` (the legend), `words`, `heat` and `wave`."""
    panels = dict.fromkeys(("inside", "words", "heat", "wave"), "")
    if visit.explanation is None:
        return panels
    title = views.heading(3, visit.tell("inside"))
    if not visit.has_details:
        if visit.trouble or visit.is_looking:
            panels["inside"] = title + waiting_view(visit, "looking")
        return panels
    known = visit.explanation
    completeness = known.get("completeness") or {}
    careful = views.note(visit.tell("incomplete")) if completeness.get("warning") else ""
    panels["inside"] = title + views.legend(visit.language, known) + careful
    if known["text"]:
        panels["words"] = views.words_view(visit.language, visit.given["text"], known)
    if known["image"]:
        panels["heat"] = views_pictures.heat_view(visit.language, visit.heat, known)
    if known["audio"]:
        panels["wave"] = views_pictures.wave_view(visit.language, visit.peaks, known, visit.heard)
    return panels
