"""What the local server answers: a sample of about 80 words, or a judge's label."""

from rlaif.hashing import uniform
from tests.servers.fault_server import Answer, Asked, error_json

_SENTENCE = "This is a plain sentence of a sample that says neither much nor little. "


def answer(asked: Asked) -> Answer:
    """Different samples for the same prompt; of two responses the judge takes the first or the second by hash."""
    if not asked.body["messages"]:  # how curator asks for the limits
        return Answer(status=400, body=error_json(asked.api, "messages is empty", type="invalid_request_error"))
    if "<response_X>" in asked.last_message:
        return Answer("X" if uniform(asked.key) < 0.5 else "Y")
    return Answer(f"Sample {asked.key[:8]}. {_SENTENCE * 6}")
