"""The laws of dnirnn, for a core or an estimator of your own: ``check_core``, ``check_estimator``."""

from dnirnn.testing.cores import check_core
from dnirnn.testing.estimators import check_estimator
from dnirnn.testing.laws import Broken, LawsBroken

__all__ = ["Broken", "LawsBroken", "check_core", "check_estimator"]
