"""Talk to the models of a run in a terminal: `rlhfctl chat`."""
