"""Text to packed token blocks."""
