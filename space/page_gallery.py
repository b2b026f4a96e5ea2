"""Below an answer, the rows of the index that are nearest to what was given; there only when the server has an index.

Unusual: they are looked for with vectors that came with the answer, one of each subset of the inputs. So a switch that
turns an input off asks the index again, and no model.
"""

from typing import Any

import gradio as gr

from space.inputs import MODALITIES
from space.page_parts import refused
from space.page_visit import Visit
from space.service import Service
from space.views import heading, note
from space.views_gallery import gallery_view


class GalleryRow:
    """The panel, and what happens when there is a new answer or a switch was turned.

    Args:
        service: whose index is searched.
    """

    def __init__(self, service: Service):
        self.service = service

    def build(self) -> None:
        self.panel = gr.HTML("", elem_id="nearest", elem_classes="mm-card")

    async def on_search(self, visit: Visit) -> Any:
        """Look for the rows that are like what is turned on; what came too late is not shown."""
        vectors, subset = visit.vectors, subset_of(visit)
        if subset:
            cards, trouble = await refused(self.service.find_cards(vectors[subset]))
            if visit.vectors is not vectors or subset_of(visit) != subset:
                return gr.skip()
            visit.cards, visit.cards_trouble = cards, trouble and trouble.said
        return gallery_panel(visit)


def subset_of(visit: Visit) -> str:
    """Name what is given and turned on, as the vectors are called; nothing: an empty name."""
    return "+".join(name for name in MODALITIES if name in visit.vectors and name not in visit.off)


def gallery_panel(visit: Visit) -> str:
    """Give the rows that were found last, or why there are none."""
    if visit.ranked is None:
        return ""
    title = heading(3, visit.tell("nearest"))
    if not subset_of(visit):
        return title + note(visit.tell("nearest.nothing"))
    if visit.cards_trouble is not None:
        return title + note(visit.cards_trouble[visit.language])
    if visit.cards is None:
        return title + note(visit.tell("nearest.working"), "pending")
    without = [name for name in MODALITIES if name in visit.vectors and name in visit.off]
    return gallery_view(visit.language, visit.cards, without)
