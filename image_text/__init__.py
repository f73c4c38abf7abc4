"""Pictures with captions, wherever they lie: tables, folders, TFDS, two built-in sets.

numpy and Pillow; no model, no JAX.
"""
