"""What a setting is: type, limits, help and old names; for sampler, trainer, command line, page and API."""
