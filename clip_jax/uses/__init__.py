"""Uses of embeddings: retrieval, zero-shot classification, linear probes, and features of many pictures."""
