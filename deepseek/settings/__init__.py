"""Settings: type, limits, help and old names, for the samplers, the trainer, the command lines, the page and the API."""
