"""What importing dnirnn says of an extension that is missing, or that was built for another torch."""

import importlib.util

import pytest
import torch

from dnirnn import ops


@pytest.mark.skipif(not ops.built, reason="the extension is not built here")
def test_an_extension_for_another_torch_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    with pytest.raises(ImportError, match=r"built for torch \d.* and this is torch 0\.0\.1: build"):
        ops.load_extension()


def test_without_an_extension_there_is_a_warning_and_a_path(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="without its fused operators .*`dnirnn doctor`"):
        assert ops.load_extension() is None
