"""Records -> plotly figures: pure functions, a file a subject."""
