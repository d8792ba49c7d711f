"""What a run costs: a plan of it, and real steps that say more."""
