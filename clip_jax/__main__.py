"""`python -m clip_jax`: see `clip_jax.cli`."""

from clip_jax.cli import run

if __name__ == "__main__":
    run()
