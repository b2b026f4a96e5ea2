"""Serve a model: a page to try it, and an HTTP API.

    python app.py --model outputs/demo                    # a folder that train.py wrote
    python app.py --model user/name --revision 1a2b3c4    # from the Hub, pinned
    python app.py                                         # a small model, trained on the demo set at the first start
    python app.py --model outputs/mine --task stars       # of a model with several tasks one
    python app.py --model outputs/mine --index outputs/index --index_media my   # shows similar rows of my/table.csv

On a Space the same settings come from variables (MMFUSION_MODEL, MMFUSION_REVISION), and a private model is read with
the secret HF_TOKEN.
"""

import os
import sys

from cli.arguments import exit_code
from space.options import Options, parse_options


def serve(options: Options) -> None:
    """Load, then listen: what cannot answer does not open a port.

    Raises:
        ValueError, OSError: The port is taken, the model or the index is not there or not whole, they do not belong
            together, or the accelerator failed.
    """
    # Read whenever Gradio has something to report, so it is set for the whole process.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from cli.loading import load_pipeline
    from space.demo_model import cached_demo_model
    from space.server import DrainingServer, bound_socket, make_app
    from space.service import Service

    with bound_socket(options.host, options.port) as listener:
        name = options.model or str(cached_demo_model())
        print(f"loading {name}", flush=True)
        loaded = load_pipeline(name, revision=options.revision, device=options.device)
        gallery = opened_gallery(loaded, options, name)
        service = Service(for_one_task(loaded, options.task), options, gallery=gallery)
        DrainingServer(make_app(service, options, name), service, options).run_on(listener)


def opened_gallery(pipeline, options: Options, name: str):
    """Give the rows of `--index`, or None where there is none; `space.gallery.open_gallery` says what it refuses."""
    if options.index is None:
        return None
    from space.gallery import open_gallery

    return open_gallery(pipeline, options, name)


def for_one_task(pipeline, name: str | None):
    """Give the pipeline for the task of this name; None: the first, or what it is where the model has one.

    Raises:
        ValueError: The model has no such task.
    """
    names = getattr(pipeline, "task_names", ())  # the pipeline of an older model has none
    return pipeline.for_task(name or names[0]) if name or names else pipeline


def main(argv: list[str] | None = None) -> int:
    return exit_code(serve, parse_options(argv))


if __name__ == "__main__":
    sys.exit(main())
