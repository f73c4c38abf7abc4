"""`python -m clip_jax`: see `clip_jax.cli`."""

from clip_jax.cli import main

if __name__ == "__main__":
    main()
