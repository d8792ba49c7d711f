"""What a step or a sampling needs of memory, and what to say when it does not fit."""
