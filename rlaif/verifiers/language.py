"""In which language a text is written.

Found with langdetect (55 languages, character n-grams), seeded, so that the same text always gives the same answer.
What it cannot do: tell the language of a few words, of capitals, or of two languages at once.
"""

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlaif.errors import InputError, TaskError
from rlaif.types import Reward
from rlaif.verifiers.base import Task
from rlaif.verifiers.text import TextOptions, TextVerifier, passed

_CODES = """
    af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no pa pl pt ro
    ru sk sl so sq sv sw ta te th tl tr uk ur vi zh-cn zh-tw"""
LANGUAGES = tuple(_CODES.split())

_READ = 20_000  # characters; langdetect itself looks at 10,000
_loading = threading.Lock()


def detect(text: str) -> str | None:
    """The ISO 639-1 code (zh-cn, zh-tw) of the text's language, "unknown", or None where no letter tells it."""
    detector = load().create()
    from langdetect.lang_detect_exception import LangDetectException

    detector.append(text[:_READ])
    try:
        return str(detector.detect())
    except LangDetectException:
        return None


def load() -> Any:
    """langdetect's profiles (30 MB and half a second, once). Raises InputError where it is not installed."""
    with _loading:
        return _loaded()


@lru_cache(maxsize=1)
def _loaded() -> Any:
    try:
        from langdetect import detector_factory
    except ImportError:
        raise InputError("Language checks need the package langdetect: pip install langdetect.") from None
    factory = detector_factory.DetectorFactory()  # one of our own: the package's is shared by the whole process
    factory.set_seed(0)
    factory.load_profile(str(Path(detector_factory.PROFILES_DIRECTORY)))
    return factory


class LanguageOptions(TextOptions):
    language: str | None = None


class LanguageVerifier(TextVerifier[LanguageOptions, str]):
    """The completion is in ``language`` (a code of `LANGUAGES`, as column or option). Without letters it is in none."""

    identity = "language@1"
    Options = LanguageOptions

    def goal(self, task: Task) -> str:
        language = str(self.setting(task, "language", str))
        if language not in LANGUAGES:
            raise TaskError(f"{self.identity}: unknown language {language!r}; there are: {', '.join(LANGUAGES)}.")
        load()
        return language

    def decide(self, text: str, goal: str) -> Reward:
        found = detect(text)
        if found is None:
            return Reward(value=0.0, reason="unparseable", detail="no letters that tell a language")
        return passed(found == goal, f"looks like {found}")
