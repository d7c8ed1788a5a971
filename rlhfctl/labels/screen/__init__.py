"""Ask people in a terminal which response is better: `rlhfctl label` without `--web`.

start.py     checks the terminal, runs the app, counts the labels
app.py       keys, and the way from a question over the desk to the next question
widgets.py   panes that scroll, the closing page, the windows for help and notes
words.py     every text on the screen, as plain functions
ranking.py   what an annotator has ranked so far
"""
