"""Checkpoints, both ways: found in a folder or on the hub, read without running anything from them, written
back."""
