"""doctor: what is built, what is offered, and what to do about what is missing."""

import torch

from dnirnn import ops
from dnirnn.commands import doctor
from dnirnn.commands.cli import main


def test_it_says_what_is_there(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert torch.__version__ in said
    assert f"{doctor.usable_cores()} usable" in said
    for name, finding in ops.describe().items():
        assert name in said and finding in said


def test_it_says_what_to_do_where_nothing_is_built(monkeypatch):
    monkeypatch.setattr(ops, "built", False)
    said = doctor.report()
    assert "reference path" in said
    assert "pip install --no-build-isolation ." in said


def test_it_says_what_to_do_about_a_missing_package(monkeypatch):
    monkeypatch.setattr(doctor, "has", lambda package: package != "datasets")
    assert "pip install datasets" in doctor.report()
    monkeypatch.setattr(doctor, "has", lambda package: True)
    assert "pip install datasets" not in doctor.report()


def test_it_says_so_where_threads_outnumber_cores(monkeypatch):
    monkeypatch.setattr(doctor, "usable_cores", lambda: torch.get_num_threads() - 1)
    assert "--threads" in doctor.report()
