"""Write both sides of a conversation beside a model's suggestions: `rlhfctl label --write`."""
