"""The datasets this project brings along, as TFDS builders that need no TensorFlow.

One module a dataset. Each has `prepare(data_dir, ...)`, which writes the data on first use and returns the builder, and
`source(split, data_dir=..., ...)`, a random-access source of dicts, the thing `train_jax.data` reads.
"""
