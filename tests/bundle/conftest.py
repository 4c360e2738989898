"""Fixtures of bundles: the tiny one."""

from tests.serving.tiny import tiny_bundle, tiny_workspace

__all__ = ["tiny_bundle", "tiny_workspace"]
