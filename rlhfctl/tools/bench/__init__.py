"""Measure speed and memory of the PPO engine, and compare with TRL's: `rlhfctl bench ppo`."""
