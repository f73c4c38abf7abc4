"""Draws pictures: `python sample.py "a prompt"`, or any other command of `unclip`. `--help` lists them."""

from unclip_jax.commands.main import main

if __name__ == "__main__":
    main()
