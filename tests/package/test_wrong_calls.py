"""Each wrong call of what is public is refused by an error that names the argument."""

import inspect

import pytest
from wrong_calls import CALLS, OWN

import dnirnn

# Not here: what has no argument, what people write subclasses of, and what is made by the rest.
WITHOUT = {"Core", "GradientEstimator", "ZeroGradient", "Interface", "LoadedRun", "__version__"}
NAMES = {"x_TBI": "x", "state_BS": "state"}


def test_all_that_is_public_is_here():
    assert set(dnirnn.__all__) - WITHOUT <= set(CALLS)
    for name, (function, _, wrong) in CALLS.items():
        if name in dnirnn.__all__ and name not in WITHOUT:
            known = set(inspect.signature(function).parameters)
            left = known - set(wrong) - {"device", "dtype", "options"} - WRONG_ELSEWHERE.get(name, set()) - OWN.get(name, set())
            assert not left, f"{name}: {left}"
    assert sum(len(values) for _, _, wrong in CALLS.values() for values in wrong.values()) > 700


# Callables and dictionaries, which any may be.
WRONG_ELSEWHERE = {
    "TrainerConfig": {"values"},
    "Decoupled": {"synthetic_inputs", "synthetic_input_optimizers"},
    "DecoupledParallel": {"group"},
    "HierarchyParallel": {"group"},
    "Trainer": {
        "task", "evaluate", "test", "fidelity", "horizon", "prepare", "run_config", "may_change", "restart",
        "resume_with", "quiet", "told", "device", "graphs", "ranks",
    },
    "load": {"weights", "device"},
    "read_log": {"kind"},
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_argument_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, good, wrong = CALLS[name]
    silent, unnamed = [], []
    for argument, values in wrong.items():
        for value in values:
            arguments = {**(good() if callable(good) else good), argument: value}
            said = f"{argument}={value!r:.60}"
            try:
                function(**arguments)
                silent.append(said)
            except (TypeError, ValueError, OSError) as error:
                if NAMES.get(argument, argument) not in str(error) or "\n" in str(error):
                    unnamed.append(f"{said}: {type(error).__name__}: {str(error):.100}")
            except Exception as error:
                unnamed.append(f"{said}: {type(error).__name__}: {str(error):.100}")
    assert not silent and not unnamed, "\n".join(["taken:", *silent, "not named:", *unnamed])
