"""How fast a model is served: see `python -m benchmarks.serve --help`."""
