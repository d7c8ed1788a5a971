"""Generate the built-in tasks `builtin:reviews`, `builtin:programs` (with tests) and `builtin:sentiment` (with labels).

With the reviews the whole pipeline runs offline on a CPU with a model of a million parameters, and "better" has a known
meaning. `reviews` generates the three data sets, `gold` computes the true preference, `lexicon` holds the words that
both share. This file imports nothing: a stage that only reads data must not import the gold scorer, which only compare
and evaluation logging may use. `programs` generates tasks for programs; what is right there, the tests say.
`sentiment` generates reviews with labels, and texts that plant the words of a good prompt.
"""
