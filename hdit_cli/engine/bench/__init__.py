"""What `hdit bench` measures: a recipe's real training step and sampler, their parts, and what they might be instead."""
