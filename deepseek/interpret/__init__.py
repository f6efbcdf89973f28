"""What the model did with a text, and what happens if one changes it."""
