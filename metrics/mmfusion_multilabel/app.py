"""The page of this metric's Space: predictions and references as JSON in, the metric's values out.

Unusual: `evaluate` has a function for such pages, but it needs a gradio of years ago, so the page is made here.
"""

import json
from pathlib import Path

SCRIPT = Path(__file__).with_name("mmfusion_multilabel.py")
EXAMPLE = ("[[0.9, 0.6], [0.2, 0.7]]", "[[1, 0], [0, 1]]")


def read(name: str, text: str) -> list:
    """Give the list that stands in a field of the page."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"`{name}` is no JSON ({error}); a list such as {EXAMPLE[0]} is.") from None
    if not isinstance(values, list):
        raise ValueError(f"`{name}` is {text!r:.60}; give a list such as {EXAMPLE[0]}.")
    return values


def make_page():
    """Give the page, ready to be launched."""
    import evaluate
    import gradio as gr

    metric = evaluate.load(str(SCRIPT))

    def compute(predictions: str, references: str) -> dict:
        try:
            return metric.compute(
                predictions=read("predictions", predictions), references=read("references", references)
            )
        except (ValueError, TypeError) as error:
            raise gr.Error(str(error)) from error

    return gr.Interface(
        compute,
        inputs=[gr.Textbox(EXAMPLE[i], lines=4, label=name) for i, name in enumerate(("predictions", "references"))],
        outputs=gr.JSON(label="values"),
        title=metric.name,
        description=metric.description,
        article=f"```\n{metric.inputs_description.strip()}\n```",
        flagging_mode="never",
        api_name="compute",
    )


if __name__ == "__main__":
    make_page().launch()
