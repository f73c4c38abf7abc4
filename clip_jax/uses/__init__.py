"""What an embedding is used for: search, zero-shot classes, probes; features of many pictures."""
