"""The maths of diffusion: noise densities and schedules, preconditioning, loss weights, samplers, guidance. Tensors in, tensors out."""
