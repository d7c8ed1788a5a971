"""Training by TRL's trainers: their options, events and quiet, and its PPOTrainer."""

LAST_TRL = "1.12.0"  # the last release that has a PPOTrainer
