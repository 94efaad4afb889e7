"""The engines: one adapter file each."""
