"""Evaluation of systems of the shapes world: exact match, variety, CLIP score, Fréchet distance, comparisons."""
