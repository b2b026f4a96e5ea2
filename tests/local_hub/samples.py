"""A small repository to push, and two short ways to ask: for another user's client, and for what was answered."""

import os

from huggingface_hub import HfApi

from .hub import LocalHub

CARD = """---
pipeline_tag: text-classification
library_name: transformers
license: apache-2.0
base_model: [google-bert/bert-base-uncased]
base_model_relation: finetune
tags: [multimodal]
---
# A model
"""
WEIGHTS = os.urandom(200_000)


def as_user(hub: LocalHub, token: str | bool) -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def statuses(hub: LocalHub, method: str, part: str) -> list[int | None]:
    """Answers to all requests so far of a method whose path has this part, in order."""
    return [status for seen, path, status in hub.requests if seen == method and part in path]
