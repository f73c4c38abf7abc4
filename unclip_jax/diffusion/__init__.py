"""The maths of diffusion: noise schedules, parametrisations, losses, guidance, samplers, random keys."""
