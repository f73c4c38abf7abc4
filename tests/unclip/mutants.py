"""Puts each fault of `test_known_faults.py` into a copy of this tree, and sees that the test named for it fails.

    python tests/unclip/mutants.py                # all, a few minutes
    python tests/unclip/mutants.py 4 9            # those of faults 4 and 9

Prints what each test says; exit code 1 if a fault survives. A mutant whose text is no longer in the code is an error:
bring it up to date with the code.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FAULTS = "tests/unclip/test_known_faults.py"


class Mutant(NamedTuple):
    """``old`` in ``path`` becomes ``new``, which ``test`` has to notice."""

    fault: str
    what: str
    path: str
    old: str
    new: str
    test: str


MUTANTS = (
    Mutant(
        "1",
        "the unconditional prior loses the noised embedding",
        "unclip_jax/models/prior.py",
        "        tokens, time = self.noised_tokens(x_t, t, x0_hat)\n        caption, readable",
        "        x_t = jnp.where(cond.with_keep(len(x_t)).keep_text[:, None], x_t, 0.0)\n"
        "        tokens, time = self.noised_tokens(x_t, t, x0_hat)\n        caption, readable",
        f"{FAULTS}::test_1_the_unconditional_prior_still_sees_the_noised_embedding",
    ),
    Mutant(
        "2",
        "the bound weighs 1000 times too little",
        "unclip_jax/stage.py",
        "mean + bound * stage.num_timesteps / 1000.0",
        "mean + bound * 0.001",
        "tests/unclip/test_stage.py::test_learned_variance_adds_the_bound",
    ),
    Mutant(
        "3",
        "the bound takes every output for noise",
        "unclip_jax/stage.py",
        "x0_hat = PREDICTIONS[stage.prediction].to_x0",
        'x0_hat = PREDICTIONS["eps"].to_x0',
        f"{FAULTS}::test_3_the_bound_is_that_of_the_estimate_whatever_is_predicted",
    ),
    Mutant(
        "4",
        "guidance extrapolates the variance",
        "unclip_jax/diffusion/guidance.py",
        "(None if a is None else jnp.split(a, 2)[0] for a in both[1:])",
        "(None if a is None else (3 * jnp.split(a, 2)[0] - 2 * jnp.split(a, 2)[1]) for a in both[1:])",
        "tests/unclip/test_guidance.py::test_variance_is_that_of_the_conditional_branch",
    ),
    Mutant(
        "5",
        "logits q·k/d",
        "clip_jax/towers/attention.py",
        "q * q.shape[-1] ** -0.5",
        "q / q.shape[-1]",
        "tests/unclip/test_unet.py::TestFormulas::test_attention",
    ),
    Mutant(
        "6",
        "self-conditioning is trained on the raw output",
        "unclip_jax/stage.py",
        "denoise(at.x_t, at.t, jnp.zeros_like(at.x_t)).x0, 0.0)",
        "network(stage).apply(variables, at.x_t, at.t, cond), 0.0)",
        "tests/unclip/test_stage.py::test_in_training_a_coin_per_sample_says_who_is_given_an_estimate",
    ),
    Mutant(
        "6",
        "training gives the network another kind of time than sampling",
        "unclip_jax/stage.py",
        "variables, at.x_t, at.t, cond, *given, train=train",
        "variables, at.x_t, at.t / stage.num_timesteps, cond, *given, train=train",
        f"{FAULTS}::test_6_the_network_is_trained_on_the_inputs_it_is_sampled_with",
    ),
    Mutant(
        "7",
        "embeddings are scaled in place",
        "unclip_jax/tasks.py",
        "    return stage.model.network().apply(variables, image_embed, method=",
        "    image_embed *= 2.0\n    return stage.model.network().apply(variables, image_embed, method=",
        f"{FAULTS}::test_7_embeddings_of_the_caller_are_left_alone",
    ),
    Mutant(
        "8",
        "every estimate is clamped to ±1",
        "unclip_jax/stage.py",
        "    elif sampling.clip is not None:\n        denoise = clip_x0(-sampling.clip, sampling.clip)(denoise)",
        "    else:\n        denoise = clip_x0(-1.0, 1.0)(denoise)",
        f"{FAULTS}::test_8_embeddings_are_not_clipped_to_the_range_of_pictures",
    ),
    Mutant(
        "8",
        "a prior's preset clamps to ±1",
        "unclip_jax/stage.py",
        "    clip: float | None = 1.0\n    threshold",
        "    clip: float | None = 1.0\n    # every preset's\n"
        '    def __post_init__(self):\n        object.__setattr__(self, "clip", 1.0)\n\n    threshold',
        f"{FAULTS}::test_8_embeddings_are_not_clipped_to_the_range_of_pictures",
    ),
    Mutant(
        "9",
        "the grid ends at time 0 and not at clean data",
        "unclip_jax/diffusion/samplers.py",
        "ends = jnp.append(times[1:], -1)",
        "ends = jnp.append(times[1:], 0)",
        f"{FAULTS}::TestFault9::test_every_grid_ends_at_clean_data",
    ),
    Mutant(
        "9",
        "the even grid starts below pure noise",
        "unclip_jax/diffusion/schedule.py",
        "np.round(np.linspace(num_timesteps - 1, 0, num_steps))",
        "np.round(np.linspace(num_timesteps - num_timesteps / num_steps, 0, num_steps))",
        f"{FAULTS}::TestFault9::test_the_even_grid_starts_at_pure_noise",
    ),
    Mutant(
        "9",
        "eps is read with the noise of the time before",
        "unclip_jax/diffusion/samplers.py",
        "eps = (x_t - schedule.alpha(t) * x0) / schedule.sigma(t)",
        "eps = (x_t - schedule.alpha(t - 1) * x0) / schedule.sigma(t - 1)",
        f"{FAULTS}::TestFault9::test_every_step_lands_on_the_noise_of_its_own_time",
    ),
    Mutant(
        "9",
        "ddim is random by default",
        "unclip_jax/diffusion/samplers.py",
        "def ddim(eta: float = 0.0)",
        "def ddim(eta: float = 1.0)",
        f"{FAULTS}::TestFault9::test_ddim_is_deterministic_unless_told_otherwise",
    ),
    Mutant(
        "10",
        "reducing takes the nearest pixel",
        "unclip_jax/degrade.py",
        "return images.reshape(b, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))",
        "return images[:, ::factor, ::factor]",
        f"{FAULTS}::test_10_resizing_does_not_alias",
    ),
    Mutant(
        "10",
        "enlarging takes the nearest pixel",
        "unclip_jax/models/unet.py",
        'low_res.shape[-1]), "cubic")',
        'low_res.shape[-1]), "nearest")',
        f"{FAULTS}::test_10_resizing_does_not_alias",
    ),
    Mutant(
        "11",
        "one coin decides on blur for the whole batch",
        "unclip_jax/degrade.py",
        "jax.random.bernoulli(keys[1], config.blur_prob, (batch, 1, 1, 1))",
        "jax.random.bernoulli(keys[1], config.blur_prob, (1, 1, 1, 1))",
        f"{FAULTS}::test_11_chance_is_drawn_on_the_device_for_each_sample",
    ),
    Mutant(
        "11",
        "a generator of numpy decides, once for all compiled calls",
        "unclip_jax/degrade.py",
        "std = jax.random.uniform(keys[2], (batch, 1, 1, 1), jnp.float32, maxval=config.noise_std)",
        "std = config.noise_std * np.random.default_rng(0).random((batch, 1, 1, 1))",
        f"{FAULTS}::test_11_chance_is_drawn_on_the_device_for_each_sample",
    ),
    Mutant(
        "12",
        "an embedding as wide as the tokens stays one vector",
        "unclip_jax/models/unet.py",
        "            image_tokens = image_tokens.reshape(-1, image.tokens, config.context_width)\n",
        "            image_tokens = image_tokens.reshape(-1, image.tokens, config.context_width)\n"
        "            if image.embed_dim == config.context_width:\n"
        "                image_tokens = jnp.broadcast_to(image_embed[:, None], image_tokens.shape)\n",
        f"{FAULTS}::test_12_an_embedding_as_wide_as_the_tokens_still_becomes_tokens",
    ),
    Mutant(
        "13",
        "text reaches the middle block alone",
        "unclip_jax/models/unet.py",
        'h = attention(f"up_{i}_attention_{j}")(h, context, context_mask)',
        'h = attention(f"up_{i}_attention_{j}")(h, 0 * context, context_mask)',
        f"{FAULTS}::test_13_the_caption_is_read_at_every_attention",
    ),
    Mutant(
        "14",
        "the mask is guessed from zeros",
        "unclip_jax/models/prior.py",
        '        text_mask = need(cond.text_mask, "text_mask")\n',
        "        text_mask = cond.text_mask & jnp.any(cond.text_encodings != 0, axis=-1)\n",
        f"{FAULTS}::TestFault14::test_the_mask_is_of_tokens_and_not_of_zeros",
    ),
    Mutant(
        "14",
        "pictures must have CLIP's size",
        "unclip_jax/pipeline.py",
        "    clip, decoder = unclip.clip, unclip.decoder.model\n",
        "    clip, decoder = unclip.clip, unclip.decoder.model\n"
        "    assert clip.vision.image_size == decoder.image_size\n",
        f"{FAULTS}::TestFault14::test_pictures_may_have_another_size_than_clips",
    ),
    Mutant(
        "14",
        "a part of a batch is drawn with the noise of another",
        "unclip_jax/stage.py",
        "return normal(fold_in_each(keys, stage.num_timesteps), stage.sample_shape)",
        "return jax.random.normal(keys[0], (len(keys), *stage.sample_shape))",
        f"{FAULTS}::TestFault14::test_a_part_of_the_batch_is_the_same_part_of_the_pictures",
    ),
    Mutant(
        "15",
        "a later field changes what older configs mean",
        "unclip_jax/stage_configs.py",
        'sampling.pop("grid", "uniform")',
        'sampling.pop("grid", "leading")',
        f"{FAULTS}::TestFault15::test_a_config_from_before_a_field_was_there_still_loads",
    ),
    Mutant(
        "15",
        "what a config says and no one knows is ignored",
        "unclip_jax/stage_configs.py",
        "    strict=True,\n",
        "",
        f"{FAULTS}::TestFault15::test_a_config_from_a_later_version_is_refused",
    ),
    Mutant(
        "15",
        "conditional dropout drops nothing",
        "unclip_jax/tasks.py",
        "cond = drop(cond, key, text=self.drop_text, image=self.drop_image)",
        "cond = drop(cond, key, text=0.0, image=0.0)",
        "tests/unclip/test_tasks.py::test_conditions_are_dropped_as_in_the_paper",
    ),
    Mutant(
        "seed 4",
        "captions are encoded once more for the decoder",
        "unclip_jax/pipeline.py",
        "    cond = Cond.of(text, image_embed)\n    images = decode(",
        "    cond = Cond.of(encode_text(unclip, params, tokens), image_embed)\n    images = decode(",
        f"{FAULTS}::test_seed_4_captions_are_encoded_once",
    ),
    Mutant(
        "seed 4",
        "one coin drops the condition of the whole batch",
        "unclip_jax/conditioning.py",
        "jax.random.bernoulli(key_text, 1.0 - text, keep_text.shape)",
        "jax.random.bernoulli(key_text, 1.0 - text)",
        "tests/unclip/test_conditioning.py::test_dropped_as_often_as_asked_and_independently",
    ),
    Mutant(
        "seed 4",
        "one time for the whole batch",
        "unclip_jax/diffusion/losses.py",
        "jax.random.uniform(key_t, (), jnp.float32) + jnp.arange(batch_size) / batch_size",
        "jax.random.uniform(key_t, (), jnp.float32) + jnp.zeros(batch_size)",
        f"{FAULTS}::test_seed_4_times_and_noise_differ_between_samples",
    ),
    Mutant(
        "seed 4",
        "the prior is left out and its control does not show it",
        "unclip_jax/evaluation/shapes.py",
        '"text_embed_no_text": Control("text", False,',
        '"text_embed_no_text": Control("prior", False,',
        "tests/unclip/test_evaluate.py::test_controls_take_the_embedding_they_name",
    ),
)


def mutate(mutant: Mutant, tree: Path) -> bytes:
    """Writes the mutant into the tree; gives what stood in its file before."""
    path = tree / mutant.path
    before = path.read_bytes()
    code = before.decode()
    if code.count(mutant.old) != 1:
        sys.exit(f"fault {mutant.fault}: {mutant.path} has {code.count(mutant.old)} times {mutant.old!r}; bring it up")
    path.write_text(code.replace(mutant.old, mutant.new), encoding="utf-8")
    return before


def failure(tests: list[str], tree: Path) -> str | None:
    """What the first of these tests to fail in the tree says, None if all pass; anything else ends the program."""
    # A Python that believed the cache would run the code from before the mutation.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "", *tests]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"{tests} did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    said = (line for line in done.stdout.splitlines() if line.startswith("E   ") and not line.endswith("%]"))
    return " ".join(next(said).split()[1:])[:100] if done.returncode else None


def main(faults: list[str]) -> int:
    chosen = [m for m in MUTANTS if not faults or m.fault in faults]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "runs", "data"))
        if said := failure(list(dict.fromkeys(m.test for m in chosen)), tree):
            sys.exit(f"a test fails without any fault: {said}")
        for mutant in chosen:
            before = mutate(mutant, tree)
            said = failure([mutant.test], tree)
            (tree / mutant.path).write_bytes(before)
            survivors += said is None
            print(f"{mutant.fault:>6}  {mutant.what}\n{'':8}{said or 'SURVIVES ' + mutant.test}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
