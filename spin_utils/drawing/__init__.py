"""From results to what people look at: tables, figures, pages, model cards, and the views of the notebooks.

Doors: `draw` (all tables and figures of a profile), `tables` and `figures` (one function per table and figure),
`report`, `card`, `crate`, and `views` for the notebooks. All of it reads results and finished artifacts and never
starts training.
"""
