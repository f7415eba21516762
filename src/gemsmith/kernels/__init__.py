"""Faster equals of the plain functions; each names the one it replaces and is tested against it."""
