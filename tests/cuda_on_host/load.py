"""A plugin of pytest: the CPU's tensors take the GPU's drivers and kernels, which run on the host."""

import os

import torch

from dnirnn import ops

torch.ops.load_library(os.environ["DNIRNN_CUDA_ON_HOST"])
ops.DTYPES["cpu"] = ops.DTYPES["cuda"]
