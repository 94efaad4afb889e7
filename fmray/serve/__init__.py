"""Serving: one Ray Serve application for a list of admitted models, with an OpenAI-compatible face."""
