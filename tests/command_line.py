"""Words of a small run for the command line, and how it refuses."""

import re

from dnirnn.commands.cli import main

TINY = ["--hidden", "8", "--embedding", "4", "--batch", "4", "--truncation", "5"]
SHORT = ["--updates", "60", "--evaluate-every", "400", "--log-every", "100"]


def refused(capsys, argv: list[str], message: str) -> None:
    """Exit code 2, and one line on stderr, which says ``message``."""
    capsys.readouterr()
    code = main(argv)
    said = capsys.readouterr().err
    assert code == 2, said
    assert re.fullmatch(r"dnirnn: [^\n]+\n", said), said
    assert re.search(message, said), said
