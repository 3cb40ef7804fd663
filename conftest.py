"""Shapes are checked while tests run, and examples in docstrings find ``torch``, ``np`` and ``learnreg``."""

import numpy as np
import pytest
import torch
from jaxtyping import config, install_import_hook

install_import_hook("learnreg", "conftest.checked")  # before anything of learnreg is imported

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float

import learnreg


class _Raises:
    """``pytest.raises`` with the shape checks off: a test of an error gives wrong shapes on purpose."""

    original = staticmethod(pytest.raises)

    def __init__(self, *args, **kwargs):
        self.expected = self.original(*args, **kwargs)

    def __enter__(self):
        self.before = config.jaxtyping_disable
        config.update("jaxtyping_disable", True)
        return self.expected.__enter__()

    def __exit__(self, *error):
        config.update("jaxtyping_disable", self.before)
        return self.expected.__exit__(*error)


pytest.raises = _Raises


@pytest.fixture(autouse=True)
def _names_of_examples(doctest_namespace, monkeypatch, tmp_path, request):
    doctest_namespace.update(torch=torch, np=np, learnreg=learnreg)
    if request.node.__class__.__name__ == "DoctestItem":
        torch.manual_seed(0)
        monkeypatch.chdir(tmp_path)  # examples may write files
