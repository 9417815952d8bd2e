"""Estimators: what stands in, at a boundary, for the gradient that the future would have sent."""

from dnirnn.estimators.auto_scale import AutoScale
from dnirnn.estimators.base import GradientEstimator, ZeroGradient
from dnirnn.estimators.bp_lambda import BPLambda
from dnirnn.estimators.by_part import ByPart
from dnirnn.estimators.control import Control
from dnirnn.estimators.conv import ConvSyntheticGradient
from dnirnn.estimators.diagonal import DiagonalGradient
from dnirnn.estimators.least_squares import LeastSquares
from dnirnn.estimators.reader import Reader
from dnirnn.estimators.synthetic import SyntheticGradient

__all__ = [
    "AutoScale",
    "BPLambda",
    "ByPart",
    "Control",
    "ConvSyntheticGradient",
    "DiagonalGradient",
    "GradientEstimator",
    "LeastSquares",
    "Reader",
    "SyntheticGradient",
    "ZeroGradient",
]
