"""The built-in task `builtin:reviews`: short reviews of cafes, cameras, novels and the like, made by a program.

It exists so that the whole pipeline runs offline on a CPU with a model of a million parameters, and so that "better"
has a known meaning. `reviews` writes the three data sets, `gold` knows the true preference, `lexicon` holds the words
both share. Nothing is imported here: a stage that only reads data must not pull in the gold scorer, which belongs to
the comparison and to evaluation logging.
"""
