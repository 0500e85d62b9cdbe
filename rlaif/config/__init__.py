"""Configs are data: pydantic models of what a user writes, each field with its vetted default. No SDK, no torch."""
