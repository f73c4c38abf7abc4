"""The maths of diffusion: schedules, predictions, losses, guidance, samplers."""
