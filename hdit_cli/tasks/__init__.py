"""What is learnt, and how pictures come of it: each task joins a network, a codec and conditions. No steps, no files."""
