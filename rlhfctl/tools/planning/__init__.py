"""`rlhfctl plan`: what a run would do and need, before it does."""
