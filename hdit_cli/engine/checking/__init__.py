"""What `hdit doctor --check` runs: whether this machine computes what it should, each answer held against another way to it."""
