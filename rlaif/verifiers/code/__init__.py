"""Code answers, judged by running them where they cannot reach the verdict."""

from rlaif.verifiers.code.verifier import CodeVerifier

__all__ = ["CodeVerifier"]
