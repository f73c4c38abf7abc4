import dataclasses
import json

import pytest

from unclip_jax import pipeline
from unclip_jax.diffusion.samplers import DPMpp2M, Heun
from unclip_jax.evaluation import compare
from unclip_jax.evaluation.compare import Options, evaluations, variants


def run(*arguments):
    """Runs the command in this process; its exit status."""
    with pytest.raises(SystemExit) as end:
        compare.main([str(argument) for argument in arguments])
    return end.value.code


@pytest.mark.slow
def test_guidance_is_compared_in_a_table_a_file_and_a_picture(tiny_run, tmp_path, capsys):
    out = tmp_path / "new" / "guidance.json"
    scales = ("--guidance-scales", 1, 4)
    assert run("guidance", "--run", tiny_run, "--num", 2, "--chunk", 4, "--out", out, *scales) == 0
    report = json.loads(out.read_text())
    assert [row["title"] for row in report["rows"]] == ["guidance 1", "guidance 4"]
    # Without guidance the unconditional branch is not run.
    assert [row["evaluations"] for row in report["rows"]] == [4, 8]
    assert report["rows"][0]["sampling"]["guidance_scale"] is None
    assert sorted(path.name for path in out.parent.iterdir()) == ["guidance.json", "guidance.png"]
    printed = capsys.readouterr().out
    assert all(row["title"] in printed for row in report["rows"])
    assert "Fréchet distance in: mean over positions" in printed


def test_samplers_are_read_as_name_and_steps(tiny_run):
    options = Options("samplers", run=str(tiny_run), samplers=("dpmpp_2m:5", "heun:3"))
    first, second = (variant.loaded.unclip.decoder for variant in variants(options))
    assert (first.sampling.sampler, first.sampling.num_steps) == (DPMpp2M(), 5)
    assert (second.sampling.sampler, second.sampling.num_steps) == (Heun(), 3)
    # Heun calls twice per step, and guidance has two branches.
    assert (evaluations(first), evaluations(second)) == (5, 6)
    guided = dataclasses.replace(first, sampling=dataclasses.replace(first.sampling, guidance_scale=2.0))
    assert evaluations(guided) == 10


@pytest.mark.slow
def test_only_the_decoder_changes(tiny_run):
    before = pipeline.load(tiny_run).unclip
    for variant in variants(Options("guidance", run=str(tiny_run))):
        assert variant.loaded.unclip.prior == before.prior
        assert variant.loaded.unclip.upsamplers == before.upsamplers


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["guidance", "--run", "no-such-run"], "no-such-run is not a directory"),
        (["guidances"], "what: 'guidances' is none of 'guidance', 'samplers', 'priors'"),
        (["guidance", "--num", "1"], "--num: 1 is less than 2"),
        (["guidance", "--seed", "-1"], "--seed: -1 is not between"),
        (["guidance", "--guidance-scales", "2", "-1"], "--guidance-scales: -1.0 is not between"),
        (["samplers", "--samplers", "ddpm"], "--samplers: 'ddpm' is not NAME:STEPS"),
        (["samplers", "--samplers", "dppm:5"], "'dppm:5' is not NAME:STEPS with a name of ddpm, "),
        (["samplers", "--samplers", "ddpm:0"], "sampling.num_steps is 0"),
        (["guidance", "--out", "."], "--out: . is a directory"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, words, capsys):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("compare: ")
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
