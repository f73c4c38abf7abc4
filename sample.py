"""Draws pictures: `python sample.py "a prompt"`. It is the `unclip` command; `--help` lists its subcommands."""

from unclip_jax.commands.main import main

if __name__ == "__main__":
    main()
