"""Spelling, not meaning: one way to write what Unicode, Markdown and LaTeX let one write in many.

Nothing here evaluates anything; all of it is linear in the text, which `parse` bounds.
"""

import re
import unicodedata

from rlaif.verifiers.math.units import CURRENCY

_SIGNS = {
    "−": "-", "﹣": "-", "×": r"\times ", "✕": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/",
    "∕": "/", "⁄": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ", "±": r"\pm ", "∓": r"\mp ",
    "∅": r"\emptyset ", "°": r"\text{degree}", "℃": r"\text{degree}", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ",
    "…": r"\ldots ", "⋯": r"\ldots ", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"', "，": ", ", "、": ", ",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ", "φ": r"\phi ",
    "ω": r"\omega ", "ℝ": r"\mathbb{R}", "⟨": r"\langle ", "⟩": r"\rangle ",
}  # fmt: skip
_UNSEEN = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f\u2061\u2062\u2063"
_SIGNS |= dict.fromkeys(_UNSEEN, "")
_TABLE = str.maketrans(_SIGNS)
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉₊₋₍₎"
_VULGAR = re.compile("[¼½¾⅐-⅞↉]")


def fold(text: str) -> str:
    """Unicode to the LaTeX or ASCII that means the same: − √2 ½ x² ４２ ٤٢ π ≤."""
    if not text.isascii():
        text = re.sub(f"[{_RAISED}]+", lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}", text)
        text = re.sub(f"[{_LOWERED}]+", lambda m: "_{" + unicodedata.normalize("NFKC", m[0]) + "}", text)
        text = _VULGAR.sub(lambda m: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", m[0]).split("⁄")), text)
        text = re.sub(r"√\s*(\d+(?:\.\d+)?|[A-Za-z]|\([^()]*\)|\{[^{}]*\})", lambda m: _root(m[1]), text)
        text = re.sub(r"(^|[=(\[{,]\s*)[‐‑‒–—]", r"\1-", text)  # elsewhere a dash may be a range
        text = unicodedata.normalize("NFKC", text.translate(_TABLE)).translate(_TABLE)
        text = "".join(c if c.isascii() else str(unicodedata.decimal(c, c)) for c in text)
    return text


def _root(inner: str) -> str:
    return r"\sqrt{" + (inner[1:-1] if inner[0] in "({" else inner) + "}"


_ONE = r"\d|[A-Za-z]|\\pi(?![A-Za-z])"  # what is an argument without braces

_FONTS = r"mathrm|mathbf|mathit|mathsf|mathtt|boldsymbol|bm|operatorname\*?"
_WORDS = r"textbf|textit|textrm|textnormal|texttt|mbox|hbox|emph"
_ANGLES = "sin|cos|tan|cot|sec|csc"
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|ln|log|exp|arcsin|arccos|arctan"

_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"(?<!\\)\\\\(?=(?:[dt]?frac|left|right|sqrt|text|pi|infty|cdot|times)(?![A-Za-z]))", r"\\"),  # escaped twice
        # sizes and spaces
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|nolimits|hfill|boldmath)(?![A-Za-z])", ""),
        (r"(?<=\d)\s*(?:\\,|\\!|\{\s*,\s*\}|,\s*\\!|\{,\\!\})\s*(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\!|\\(?:rm|bf|it)(?![A-Za-z])", ""),
        (r"(?<!\\)\\[,;:> ]|\\q?quad(?![A-Za-z])|~|\s+", " "),
        # one name for one thing
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:leqslant|leqq?|le)(?![A-Za-z])|<=", r"\\le "),
        (r"\\(?:geqslant|geqq?|ge)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\(?:neq?|not\s*=)(?![A-Za-z])|!=", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:lbrace)(?![A-Za-z])", r"\\{"),
        (r"\\(?:rbrace)(?![A-Za-z])", r"\\}"),
        (r"\\(?:varnothing)(?![A-Za-z])", r"\\emptyset "),
        (r"\\(?:cdots|dots|dotsc|dotsb|ldots)(?![A-Za-z])|\.\.\.+", r"\\ldots "),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])|\\text\{\s*°\s*\}", r"\\text{degree}"),
        (rf"\\(?:{_FONTS})\s*\{{\s*([A-Za-z0-9.]|\\[A-Za-z]+)\s*\}}", r"\1 "),
        (rf"\\(?:{_FONTS})\s*\{{\s*({_FUNCTIONS})\s*\}}", r"\\\1 "),
        (rf"\\(?:{_WORDS}|{_FONTS})\s*\{{", r"\\text{"),
        (r"\\text\{\s*(and|or)\s*\}", r" \1 "),
        (r"\\text\{\s*([A-Z]|\d[\d.]*|,)\s*\}", r" \1 "),
        (r"\\text\{\s*\(([A-J])\)\s*\}", r"(\1) "),
        (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
        (r"\\log\s*_\s*(?:\{\s*e\s*\}|e(?![A-Za-z]))", r"\\ln "),
        # degrees: of an angle that a function is of, and of temperature
        (rf"(\\(?:{_ANGLES})(?:\s*\^\s*(?:\{{-?\d+\}}|\d))?)\s*[({{]?\s*(\d+(?:\.\d+)?)\s*\\text\{{degree\}}\s*[)}}]?",
         r"\1(\\frac{\2\\pi}{180}) "),
        (r"\\text\{degree\}\s*(?:\\text\{\s*)?([CF])(?![A-Za-z])\s*\}?", r"\\text{degree \1}"),
        (r"\\%", "%"),
        (r"^\s*\\approx(?![A-Za-z])", ""),
        # braces that LaTeX lets one leave out: \frac12, \frac{a}2, \sqrt2
        (r"\\sqrt\s*(\d+|[A-Za-z]|\\pi(?![A-Za-z]))", r"\\sqrt{\1}"),
        (rf"\\frac\s*({_ONE})\s*({_ONE})", r"\\frac{\1}{\2}"),
        (rf"\\frac\s*({_ONE})\s*(?=\{{)", r"\\frac{\1}"),
        (rf"(\\frac\s*\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}})\s*({_ONE})", r"\1{\2}"),
        # what people type for LaTeX
        (r"(?<=[\w)}])\*\*(?=[\w({-])", "^"),
        (r"\^\s*(-?\d\d+|-\d)", r"^{\1}"),
        (r"\^\s*\(([^()]*)\)", r"^{(\1)}"),
        (r"\\?sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![A-Za-z\\])(pi|infty)(?![A-Za-z])", r"\\\1 "),
        (r"(?<![A-Za-z\\])(?:infinity|oo)(?![A-Za-z])", r"\\infty "),
        (rf"(?<![A-Za-z\\])({_FUNCTIONS})(?=\s*[\d(\\^{{]| [a-z](?![a-z]))", r"\\\1 "),
    ]
]  # fmt: skip
_MONEY = re.compile(r"\\\$|[€£¥₹]")


def clean(text: str) -> str:
    """One spelling for LaTeX's own variants; mathematics keeps its meaning. Currency signs become unit words."""
    text = _without_delimiters(text)
    text = _MONEY.sub(lambda m: r"\text{" + CURRENCY[m[0][-1]] + "}", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".,;:\\ ").strip()


def _without_delimiters(text: str) -> str:
    """Without Markdown's emphasis and the marks of math mode. A lone dollar sign is money, a pair is math mode."""
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text)
    text = re.sub(r"^[\s*_`\"]+|[\s*_`\"]+$", "", text)
    dollars = len(re.findall(r"(?<!\\)\$", text))
    if dollars % 2:
        return re.sub(r"(?<!\\)\$", r"\\$", text)
    return re.sub(r"(?<!\\)\$", " ", text)
