"""Opens untrusted folders, saves crash-safe ones."""
