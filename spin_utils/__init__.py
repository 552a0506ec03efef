"""Re-measure every table and figure of the SPIN paper (arXiv 2401.01335) at the scale of the machine at hand."""

__version__ = "0.1.0"
