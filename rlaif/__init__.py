"""RLAIF and Constitutional AI: a constitution and prompts in, preference data and a tuned model out."""

__version__ = "0.1.0"
