"""Shapes are checked while tests run, and examples in docstrings find ``torch``, ``np`` and ``learnreg``."""

import functools
import locale
import os

import numpy as np
import pytest
import torch
from jaxtyping import config

from tests import checking
from tests.processes import LAUNCH

checking.install()  # before anything of learnreg is imported

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


def _unchecked(function):
    """Check shapes at the first call only: a gradient check makes thousands of calls with the same shapes."""

    @functools.wraps(function)
    def run(called, inputs, **settings):
        called(*inputs) if isinstance(inputs, tuple | list) else called(inputs)
        before = config.jaxtyping_disable
        config.update("jaxtyping_disable", True)
        try:
            return function(called, inputs, **settings)
        finally:
            config.update("jaxtyping_disable", before)

    return run


torch.autograd.gradcheck = _unchecked(torch.autograd.gradcheck)


@pytest.fixture(autouse=True)
def _same_locale():
    """DICOM files that a test writes leave the locale of C."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(autouse=True)
def _no_process_group():
    """A process group that a training leaves behind makes the next one wait, or log as one of several."""
    yield
    left = torch.distributed.is_initialized()
    if left:
        torch.distributed.destroy_process_group()
    for name in LAUNCH:
        os.environ.pop(name, None)
    if left:
        pytest.fail("this test left a process group")


@pytest.fixture(autouse=True)
def _names_of_examples(doctest_namespace, monkeypatch, tmp_path, request):
    doctest_namespace.update(torch=torch, np=np, learnreg=learnreg)
    if request.node.__class__.__name__ == "DoctestItem":
        torch.manual_seed(0)
        monkeypatch.chdir(tmp_path)  # examples may write files
