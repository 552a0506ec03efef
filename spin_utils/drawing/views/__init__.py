"""What the notebooks look at: a run's rows, pairs, curves and scores, and their pictures.

Doors: `explore` (data frames from a finished run), `show` (texts, settings, sliders), `tokens` and `items` (pictures
of single answers), `ask` (one question to every iterate), `live_curve`. Reads finished artifacts and may sample from a
finished checkpoint; never trains.
"""
