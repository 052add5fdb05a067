"""Fixtures of tests on models."""

import copy

import pytest

from harness.models.capabilities import enable_shared_cache, enable_sharing
from harness.models.loading import frozen


@pytest.fixture
def sharing_model(tiny_model):
    """A copy of the tiny model that shares prompts in passes and in its cache."""
    model = frozen(copy.deepcopy(tiny_model))
    enable_sharing(model)
    enable_shared_cache(model)
    return model
