import io
import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from train_jax.metrics import MetricsLog, Progress, summary


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_summary_is_the_mean_of_what_is_finite():
    window = [
        {"loss": jnp.float32(1), "lr": jnp.float32(0.1), "skipped": jnp.int32(0), "mae": jnp.float32(math.nan)},
        {"loss": jnp.float32(math.nan), "lr": jnp.float32(0.2), "skipped": jnp.int32(1), "mae": jnp.float32(math.nan)},
        {"loss": jnp.float32(3), "lr": jnp.float32(0.3), "skipped": jnp.int32(1), "mae": jnp.float32(math.nan)},
    ]
    found = summary(window)
    assert found["loss"] == 2
    assert found["lr"] == pytest.approx(0.3)
    assert found["skipped"] == 1
    assert math.isnan(found["mae"])


def test_a_line_per_step(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 0.5, "count": np.int32(3)})
        log.write(2, {"loss": math.nan, "grid": np.zeros((4, 6, 3), np.uint8)})
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5, "count": 3.0}, {"step": 2, "loss": None}]
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_a_resumed_log_repeats_no_step(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in range(1, 8):
            log.write(step, {"loss": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    with MetricsLog(tmp_path, start=5) as log:
        log.write(6, {"loss": 60})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(i, i) for i in range(1, 6)] + [(6, 60)]


def test_a_finished_run_opens_no_board(tmp_path):
    MetricsLog(tmp_path, start=5).close()
    assert not (tmp_path / "tensorboard").exists()


def test_images_are_read_back_from_the_board(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    with MetricsLog(tmp_path) as log:
        log.write(3, {"grid": image, "loss": 1.5})
    (path,) = (tmp_path / "tensorboard").glob("events.*")
    content, at, events = path.read_bytes(), 0, []
    while at < len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        events.append(Event.FromString(content[at + 12 : at + 12 + length]))
        at += 12 + length + 4
    values = {value.tag: (event.step, value) for event in events for value in event.summary.value}
    assert values["loss"][0] == 3
    assert values["loss"][1].simple_value == 1.5
    from PIL import Image

    np.testing.assert_array_equal(Image.open(io.BytesIO(values["grid"][1].image.encoded_image_string)), image)


def test_progress_is_a_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("train_jax.metrics.time.monotonic", lambda: now[0])
    with Progress("toy", start=0, total=10, batch_size=4, every=15) as progress:
        for step in range(1, 11):
            now[0] += 10.0
            progress.advance(step)
            progress.show(step, 1 / step)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "toy: step 2/10, loss 0.5, 0.4 images/s, 1:20 left"
    assert said[-1] == "toy: step 10/10, loss 0.1, 0.4 images/s"
    assert len(said) == 5


def test_progress_says_where_it_continues(capsys):
    Progress("toy", start=4, total=10, batch_size=4)
    Progress("toy", start=10, total=10, batch_size=4)
    assert capsys.readouterr().err.splitlines() == ["toy: continues from step 4", "toy: finished at step 10 already"]


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("prior", start=2, total=10, batch_size=4) as progress:
        for step in range(3, 11):
            progress.advance(step)
            progress.show(step, 0.25)
    assert "prior: 100%" in terminal.getvalue()
    assert "loss 0.25" in terminal.getvalue()
    assert "10/10" in terminal.getvalue()
