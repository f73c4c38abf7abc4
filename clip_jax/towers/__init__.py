"""Towers: the image and text networks, one module per architecture."""
