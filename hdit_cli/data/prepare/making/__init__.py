"""From the plan to the shards: tasks, and the processes here or on a cluster that do them."""
