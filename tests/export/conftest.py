"""Fixtures of exports: the tiny workspace, with its bundle."""

from tests.serving.tiny import tiny_bundle, tiny_workspace

__all__ = ["tiny_bundle", "tiny_workspace"]
