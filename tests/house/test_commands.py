"""The command `reformer` finds the server's and the trainer's commands by their entry points."""

from importlib.metadata import entry_points

import click
import pytest


@pytest.mark.parametrize("name", ["doctor", "plan", "score-corpus", "serve", "token", "train"])
def test_entry_point_is_a_command(name: str) -> None:
    (entry_point,) = entry_points(group="reformer.commands", name=name)
    command = entry_point.load()
    assert isinstance(command, click.Command)
    assert command.get_short_help_str()


def test_console_script_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = entry_points(group="console_scripts", name="reformer")
    main = script.load()
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    words = capsys.readouterr().out.split()
    assert {"serve", "generate", "score", "score-corpus", "documents", "plan", "doctor", "token", "train"} <= set(words)
