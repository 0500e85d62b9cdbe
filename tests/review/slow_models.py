"""Models that take their time, for a run that goes on while people vote."""

import time

from rlaif.types import ChatRequest
from tests import fakes


def judge(request: ChatRequest) -> str:
    time.sleep(0.01)
    return fakes.judge(request)
