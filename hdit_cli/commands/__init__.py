"""One file per command: an option list, one call downwards, print."""
