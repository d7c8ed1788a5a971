"""Commands beside the loop, each loaded when it is called."""
