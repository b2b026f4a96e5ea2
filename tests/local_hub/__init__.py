"""A Hub for tests that unmodified Hugging Face clients believe: see `hub.LocalHub`."""

from .hub import LocalHub, online, running_hub

__all__ = ["LocalHub", "online", "running_hub"]
