"""The core: experiments, stages, artifacts and their records. It knows nothing of torch, Ray or models."""
