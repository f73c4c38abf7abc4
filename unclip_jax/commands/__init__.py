"""The commands of `sample.py`, which is also the console script `unclip` and `python -m unclip_jax`.

One module per command, with the dataclass of its options: `draw`, `vary`, `interpolate`, `edit`, `inpaint`, `redraw`,
and `remake`, which repeats one of them. What they share: `options` (options of several commands), `originals` (reading
pictures and masks), `drawing` (from a job to PNGs and a contact sheet), `metadata` (what stands in a PNG).
"""
