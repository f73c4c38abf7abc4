import pytest

from clip_jax import UserError
from clip_jax.cli import Classify, Embed
from clip_jax.flags import parse

SOURCE = ["photos", "--model", "m"]


@pytest.mark.parametrize(
    ("kind", "argv", "line"),
    [
        (Embed, [*SOURCE, "--batch-size", "x"], "--batch-size: 'x' is not an integer"),
        (Classify, [*SOURCE, "--k=1.5"], "--k: '1.5' is not an integer"),
        (Embed, [*SOURCE, "--max-bad-fraction", "x"], "--max-bad-fraction: 'x' is not a number"),
        (Embed, [*SOURCE, "--batch-size"], "--batch-size: it needs a value"),
        (Embed, [*SOURCE, "--data-dir"], "--data-dir: it needs a value"),
        (Embed, [*SOURCE, "--bach-size", "3"], "--bach-size: there is no such flag; perhaps you meant --batch-size"),
        (Embed, ["photos", "--modl=m"], "--modl: there is no such flag; perhaps you meant --model"),
        (Embed, [*SOURCE, "--zzz"], "--zzz: there is no such flag; `prog --help` lists those there are"),
        (Embed, [*SOURCE, "more"], "more: it follows no flag that takes it; `prog --help` lists the flags"),
        (Embed, ["photos"], "--model: missing; `prog --help` says what it is"),
        (Embed, ["--model", "m"], "SOURCE: missing; `prog --help` says what it is"),
    ],
)
@pytest.mark.parametrize("columns", ["30", "200"])
def test_what_is_wrong_is_one_line(kind, argv, line, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(UserError) as error:
        parse(kind, argv, prog="prog")
    assert str(error.value) == line
    assert capsys.readouterr() == ("", "")


def test_what_is_right_is_read(capsys):
    options = parse(Classify, [*SOURCE, "--classes", "a cat", "-1", "--batch_size=3"], prog="prog")
    assert (options.classes, options.batch_size) == (("a cat", "-1"), 3)
    with pytest.raises(SystemExit) as end:
        parse(Embed, ["--help"], prog="prog")
    assert end.value.code == 0
    assert "--max-bad-fraction" in capsys.readouterr().out
