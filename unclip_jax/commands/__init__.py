"""The commands of `sample.py`, which is also the console script `unclip` and `python -m unclip_jax`.

Each command has a module with the dataclass of its options: `draw`, `vary`, `interpolate`, `edit`, `inpaint`,
`redraw`, and `remake`, which draws a picture again from its metadata. Shared modules: `options` (options of several
commands), `originals` (input pictures and masks), `drawing` (sampling, PNGs, contact sheet), `metadata` (PNG metadata).
"""
