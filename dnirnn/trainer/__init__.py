"""Where the trainer was: it is dnirnn.training.trainer. This goes with the next release."""

import warnings

from dnirnn.training.trainer import *

warnings.warn(
    "dnirnn.trainer is now dnirnn.training.trainer", DeprecationWarning, stacklevel=2
)
