"""The loop, the step, and what goes on around them."""
