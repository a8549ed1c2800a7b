"""Training: losses on MaxSim scores, data, mining, teachers and the trainer."""
