"""What every way of saving writes beside the weights: the code of the model, and the names under which it is found.

`custom_object_save` of `transformers` copies the file of a class and, found by a search of its text, the files that it
imports relatively; the cache of remote code is filled in the same way. The file of each class that is saved
(configuration, model, processor) names all others, so whichever is loaded has all of them beside it, and whichever is
saved writes all of them: without a network, and wherever it was loaded from. It must name them itself: from a folder,
older versions of transformers copy what the file imports, and not what that imports.
"""

import copy

AUTO_MAP = {
    "AutoConfig": "configuration_mmfusion.MMFusionConfig",
    "AutoModel": "modeling_mmfusion.MMFusionModel",
    "AutoModelForSequenceClassification": "modeling_mmfusion.MMFusionForSequenceClassification",
    "AutoProcessor": "processing_mmfusion.MMFusionProcessor",
}
CUSTOM_PIPELINES = {
    "multimodal-classification": {
        "impl": "pipeline_mmfusion.MMFusionPipeline",
        "pt": ["AutoModelForSequenceClassification"],
        "type": "multimodal",
    }
}


def register_code(saved):
    """Have the library write the code of an object when it is saved, also where no Auto class loaded it.

    Args:
        saved: Configuration, model or processor. A class that a user derived is saved with the code of ours, unless
            its author registered it.
    """
    names = {name.split(".")[1]: auto_class for auto_class, name in AUTO_MAP.items()}
    saved_class = type(saved)
    if not _is_ours(saved_class.__module__):
        if "_auto_class" not in vars(saved_class):
            saved_class._auto_class = None  # else inherited, and the user's own file would be copied
    elif saved_class._auto_class is None:
        saved_class.register_for_auto_class(names[saved_class.__name__])


def name_code(config):
    """Write into a configuration what the Auto classes and `pipeline` find its code by.

    Names of our classes are those of the files that are saved beside it, without the repository they were loaded from;
    names of classes that a user derived stay.
    """
    others = {key: name for key, name in (getattr(config, "auto_map", None) or {}).items() if not _is_of_ours(name)}
    config.auto_map = {**AUTO_MAP, **others}
    pipelines = {
        task: options
        for task, options in (getattr(config, "custom_pipelines", None) or {}).items()
        if not _is_of_ours(options.get("impl", ""))
    }
    has_head = (config.architectures or ["with a head"])[0] != "MMFusionModel"
    config.custom_pipelines = {**(copy.deepcopy(CUSTOM_PIPELINES) if has_head else {}), **pipelines}


def _is_ours(module: str) -> bool:
    return module.split(".")[-1].endswith("_mmfusion")


def _is_of_ours(reference) -> bool:
    """Whether "repository--module.Class" or "module.Class" names one of our classes."""
    return isinstance(reference, str) and _is_ours(reference.split("--")[-1].split(".")[0])
