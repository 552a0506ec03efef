"""From results to what people look at: tables, figures, pages, model cards, and the views of the notebooks.

Doors: `drawing.draw` (all tables and figures of a profile), `report`, `cards`, `crate`, `explore` and `controls`.
Reads results and finished artifacts; never starts training.
"""
