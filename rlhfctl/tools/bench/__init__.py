"""`rlhfctl bench ppo`: speed and memory of the PPO engine, beside TRL's."""
