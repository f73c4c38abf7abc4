"""Published weights of unCLIP: tables of names for the engine `clip_jax.weights.rules`, and what directories hold."""
