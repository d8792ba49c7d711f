"""What happens over time: training, sampling, evaluation, checkpoints, run folders, export."""
