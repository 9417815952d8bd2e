"""What reorganising must not change: the losses of six seeded runs.

As a program (``python tests/training/test_golden.py``) it writes golden.json anew, for a change that means to
change what is computed. Another CPU rounds otherwise, so the test allows for the last bits.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from dnirnn.commands.cli import main
from dnirnn.training.log import read_log

GOLDEN = Path(__file__).with_name("golden.json")
RUNS = {
    "char-lm-none": "char-lm --truncation 8 --estimator none",
    "char-lm-dni": "char-lm --truncation 8 --estimator dni --update-steps 16",
    "char-lm-least-squares": "char-lm --truncation 8 --estimator least-squares",
    "copy-dni": "copy --estimator dni --truncation 2",
    "digits-dni": "digits --training dni --cuts ticks --period 3",
    "hm-lstm-dni": "char-lm --truncation 8 --core hm-lstm --estimator dni",
}
COMMON = "--hidden 16 --batch 8 --updates 20 --log-every 1 --seed 3 --threads 1 --quiet"


def losses(name: str, folder: Path) -> list[float]:
    """Bits of every update that the run logs."""
    words = ["train", *RUNS[name].split(), *COMMON.split(), "--out", str(folder / "run")]
    if words[1] == "char-lm":
        text = folder / "text.txt"
        text.write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(1, 400)))
        words += ["--corpus", str(text)]
    threads = torch.get_num_threads()
    try:
        assert main(words) == 0
    finally:
        torch.set_num_threads(threads)
    return [row["bits"] for row in read_log(folder / "run" / "log.jsonl") if row["kind"] == "train"]


@pytest.mark.parametrize("name", RUNS)
def test_a_seeded_run_has_the_losses_it_had(name, tmp_path):
    if name.startswith("digits"):
        pytest.importorskip("sklearn")
    assert losses(name, tmp_path) == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=1e-4)


if __name__ == "__main__":
    found = {}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = losses(name, Path(folder))
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit()
