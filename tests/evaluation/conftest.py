"""A small trained run with its tokenizer, loaded once."""

from typing import Any

import pytest

from edgetrain.folder import RunFolder


@pytest.fixture(scope="session")
def loaded(finished_run: RunFolder) -> Any:
    """What `finished_run` trained, as the verbs load it. Nobody changes its weights."""
    from edgetrain.build import load_trained, read_config
    from edgetrain.compose import compose

    return load_trained(finished_run, compose([], base=read_config(finished_run)))
