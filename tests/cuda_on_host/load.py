"""A plugin of pytest: the CPU's tensors take the GPU's drivers and kernels, which run on the host.

Every test runs twice: a kernel a step, and all steps in one kernel where they fit.
"""

import os

import pytest
import torch

from dnirnn import ops

torch.ops.load_library(os.environ["DNIRNN_CUDA_ON_HOST"])
ops.DTYPES["cpu"] = ops.DTYPES["cuda"]
ops.CELLS["cpu"] = ops.CELLS["cuda"]


@pytest.fixture(autouse=True, params=["steps", "on chip"], ids=["steps", "on_chip"])
def cuda_path(request, monkeypatch) -> str:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.ops.dnirnn.cuda_path(request.param)
    yield request.param
    torch.ops.dnirnn.cuda_path("auto")
