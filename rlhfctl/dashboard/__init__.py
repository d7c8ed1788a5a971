"""What a person sees of a run: readers of the event records, and tables of the results.

Nothing here imports torch, the recipe, the stages or the training code, so a run can be watched from another process.
"""
