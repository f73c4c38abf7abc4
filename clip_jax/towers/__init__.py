"""The towers: image and text networks, one module per architecture."""
