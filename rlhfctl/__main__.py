"""`python -m rlhfctl`."""

from rlhfctl.cli import main

main()
