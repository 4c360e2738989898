"""Chromium for the tests of the documentation site."""

import pytest


@pytest.fixture
def browser_page(chromium):
    """A page of desktop width."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    opened.set_default_timeout(30_000)
    yield opened
    context.close()
