"""Train with TRL's trainers: options, events, redirected output, and TRL's PPOTrainer."""

LAST_TRL = "1.12.0"  # the last release that has a PPOTrainer
