"""Plotly figures of traces, generations and training runs."""
