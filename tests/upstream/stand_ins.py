"""What the upstream tests import but the source distribution does not ship.

It holds only `tests/test_*.py`; four names come from its sub-folders and from the repository's `utils/`. They are put
in place of those modules before the first upstream test is imported.
"""

import sys
from types import ModuleType

from .fetch import PACKAGE


class GenerationTesterMixin:
    """Tests of `generate`; upstream asks that models which cannot generate do not inherit it."""


class ExportTesterMixin:
    """Tests of `transformers.exporters`, base of `ModelTesterMixin`; `test_dynamo_export` of ours is in its place."""


def url_to_local_path(url: str) -> str:
    """Upstream's cache of Hub files for its own CI; a URL that is not cached is returned as it is."""
    return url


# Only `check_config_arguments_init` reads it, which returns early for configurations with sub-configurations.
config_common_kwargs: dict = {}

MODULES = {
    f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": GenerationTesterMixin},
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": ExportTesterMixin},
    f"{PACKAGE}.utils.test_configuration_utils": {"config_common_kwargs": config_common_kwargs},
    "fetch_hub_objects_for_ci": {"url_to_local_path": url_to_local_path},
}


def install():
    """Register the stand-ins as modules; parents that the import system asks for become empty packages."""
    for name, contents in MODULES.items():
        parent, _, leaf = name.rpartition(".")
        if parent:
            package = sys.modules.setdefault(parent, ModuleType(parent))
            package.__path__ = []
            setattr(package, leaf, _module(name, contents))
        else:
            _module(name, contents)


def _module(name: str, contents: dict) -> ModuleType:
    module = ModuleType(name, "Stand-in, see tests/upstream/stand_ins.py.")
    vars(module).update(contents)
    sys.modules[name] = module
    return module
