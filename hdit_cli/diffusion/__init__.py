"""The maths of diffusion: densities, schedules, preconditioning, loss weights, samplers, guidance. Tensors in, tensors out."""
