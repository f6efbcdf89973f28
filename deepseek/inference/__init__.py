"""Requests in, traced tokens out."""
