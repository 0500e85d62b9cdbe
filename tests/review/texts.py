"""A policy that writes what a page must not run, and a judge, for `scripted:tests.review.texts:NAME`."""

from rlaif.hashing import uniform
from rlaif.types import ChatRequest
from tests import fakes

HOSTILE = (
    "<script>document.title = 'owned'; window.owned = 1</script>",
    '<img src="x" onerror="window.owned = 1"><svg onload="window.owned = 1">',
    "**bold** [link](javascript:window.owned=1) <b>not bold</b> &lt;i&gt;",
    '"></div></section><style>* { display: none }</style>',
    "a\u202egnp.exe \u2028 \x07 ‮ \N{PILE OF POO} العربية {{ 7 * 7 }} {% raw %}",
)


def policy(request: ChatRequest) -> str:
    """Of a quality and a length that its seed decides."""
    quality = int(uniform("quality", request.seed) * 1000)
    return "\n".join((f"quality {quality}", *HOSTILE, "A longer answer. " * (quality % 300)))


def judge(request: ChatRequest) -> str:
    """Right, with hostile reasons."""
    first, second = fakes.shown_qualities(request)
    return f"{HOSTILE[0]} {HOSTILE[1]}\nVerdict: {'X' if first > second else 'Y'}"
