import pytest
from click.testing import CliRunner

from talstack.cli.demo_data import command
from talstack.io.errors import InputError


def test_renders_once_and_says_what_there_is(tmp_path):
    arguments = [str(tmp_path / "set"), "--recordings", "6", "--duration", "8", "--seed", "3", "--jobs", "1"]
    first = CliRunner().invoke(command, arguments)
    assert first.exit_code == 0, first.output
    assert "6 recordings" in first.stdout
    assert len(first.stdout.splitlines()) == 1  # the progress bar goes to stderr
    assert (tmp_path / "set" / "demo.json").is_file()
    second = CliRunner().invoke(command, arguments)
    assert second.stdout == first.stdout.replace(" actions", " actions (already there, nothing done)")


def test_refusals_reach_the_caller(tmp_path):
    with pytest.raises(InputError, match="at least 6"):
        CliRunner().invoke(command, [str(tmp_path), "--recordings", "2"], catch_exceptions=False)


def test_help_tells_a_newcomer_what_it_does():
    text = CliRunner().invoke(command, ["--help"]).output
    for word in ("--recordings", "--duration", "--seed", "--jobs", "--force", "sample data set"):
        assert word in text
