"""Command line `python -m unclip_jax`: see `unclip_jax.commands.main`."""

from unclip_jax.commands.main import main

if __name__ == "__main__":
    main()
