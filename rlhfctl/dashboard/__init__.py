"""Show a run to people: readers of its event records, and tables of its results.

Nothing here imports torch, the recipe, the stages or the training code, so a run can be watched from another process.
"""
