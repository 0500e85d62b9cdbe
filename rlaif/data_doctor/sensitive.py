"""Secrets and personal data in a text: shapes that are rarely anything else, found in linear time (RE2).

Numbers are checked as well as shaped: Luhn for cards, mod 97 and the country's length for IBANs, a public address for
IPs. What is made for documentation (example.com, 555-01xx, 192.0.2.0/24, AKIA...EXAMPLE) does not count. What it cannot
see: names, street addresses, passwords in plain words, numbers written otherwise.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, NamedTuple

Sort = Literal["secret", "personal"]

# name: (sort, RE2)
_SHAPES: dict[str, tuple[Sort, str]] = {
    "private_key": ("secret", r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    "aws_key": ("secret", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "github_token": ("secret", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})"),
    "gitlab_token": ("secret", r"\bglpat-[A-Za-z0-9_-]{20,}"),
    "huggingface_token": ("secret", r"\bhf_[A-Za-z0-9]{30,}\b"),
    "api_key": ("secret", r"\bsk-[A-Za-z0-9_-]{20,}"),
    "google_key": ("secret", r"\bAIza[0-9A-Za-z_-]{35}"),
    "slack_token": ("secret", r"\bxox[abeprs]-[A-Za-z0-9-]{10,}"),
    "stripe_key": ("secret", r"\b[rs]k_live_[0-9A-Za-z]{16,}"),
    "jwt": ("secret", r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    "url_password": ("secret", r"\b[a-z][a-z0-9+]{1,20}://[^\s:/@]{1,64}:[^\s:/@]{3,64}@[A-Za-z0-9]"),
    "email": ("personal", r"\b[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b"),
    "iban": ("personal", r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "card": ("personal", r"\b[3-6][0-9]{3}(?:[ -]?[0-9]{2,6}){2,5}\b"),
    "phone": (
        "personal",
        r"(?:\+[1-9][0-9]{0,2}[ .-]?)(?:\(0?[0-9]{1,4}\)[ .-]?)?[0-9]{1,4}(?:[ .-]?[0-9]{2,4}){2,4}\b"
        r"|\([2-9][0-9]{2}\) ?[2-9][0-9]{2}[ .-][0-9]{4}\b|\b[2-9][0-9]{2}-[2-9][0-9]{2}-[0-9]{4}\b",
    ),
    "ip": ("personal", r"\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b|\b(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}\b"),
}

# Length of an IBAN by country (ISO 13616 register).
_IBAN = {
    country: int(length)
    for country, length in re.findall(
        "(..)([0-9]+)",
        "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BR29CH21CR22CY28CZ24DE22DK18DO28EE20EG29ES24FI18FO18FR27GB22GE22GI23GL18"
        "GR27GT28HR21HU28IE22IL23IS26IT27JO30KW30KZ20LB28LI21LT20LU20LV21MC27MD24ME22MK19MR27MT31MU30NL18NO15PK24PL28"
        "PS29PT25QA29RO24RS22SA24SE24SI19SK24SM27TN24TR26UA29VA22VG24XK20",
    )
}
# Of cards: what the number begins with, and its lengths (ISO/IEC 7812 ranges of the large issuers).
_ISSUERS = (
    (re.compile("4"), (13, 16, 19)),
    (re.compile("5[1-5]|35|6011|6[45]"), (16,)),
    (re.compile("3[47]"), (15,)),
    (re.compile("3[068]"), (14,)),
    (re.compile("62"), (16, 17, 18, 19)),
)
_NUMBERS = ("card", "phone")
_PLACEHOLDERS = ("email.com", "test.com", "domain.com", "company.com", "yourdomain.com")
_DOCUMENTATION = ("example.com", "example.org", "example.net", ".example", ".test", ".invalid", ".local", ".localhost")
_RESOLVERS = ("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9")


class Hit(NamedTuple):
    sort: Sort
    name: str


def find(text: str) -> set[Hit]:
    """What kinds of sensitive data ``text`` holds; never the data itself."""
    return {Hit(_SHAPES[name][0], name) for name, match in _matches(text) if _CHECKS.get(name, _no_filler)(match)}


def _matches(text: str) -> Iterator[tuple[str, str]]:
    secret, personal = _patterns()
    for pattern in (secret, personal):
        for match in pattern.finditer(text):
            before = text[match.start() - 1 : match.start()]
            # The decimals of a number, or a term of a sum, are no card and no phone.
            if match.lastgroup in _NUMBERS and (before in (".", ",") or before.isdigit()):
                continue
            yield match.lastgroup, match[0]


@cache
def _patterns() -> tuple[Any, Any]:
    """The secrets and the personal data, each as one pattern: a text is read twice, however many shapes there are."""
    import re2

    def joined(sort: Sort) -> Any:
        return re2.compile("|".join(f"(?P<{name}>{shape})" for name, (s, shape) in _SHAPES.items() if s == sort))

    return joined("secret"), joined("personal")


def _no_filler(match: str) -> bool:
    """No placeholder such as sk-xxxxxxxxxxxxxxxxxxxx or AKIAIOSFODNN7EXAMPLE."""
    lowered = match.lower()
    return len(set(match)) >= 8 and not any(word in lowered for word in ("example", "xxxx", "your", "placeholder"))


def _is_email(match: str) -> bool:
    domain = match.lower().partition("@")[2]
    return not (domain.endswith(_DOCUMENTATION) or domain.startswith("example.") or domain in _PLACEHOLDERS)


def _is_iban(match: str) -> bool:
    compact = match.replace(" ", "")
    length = _IBAN.get(compact[:2])
    if length is None or len(compact) < length:
        return False
    compact = compact[:length]  # capitals that follow are not its own
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _is_card(match: str) -> bool:
    number = "".join(c for c in match if c.isdigit())
    if len(set(number)) < 3 or not any(len(number) in lengths and by.match(number) for by, lengths in _ISSUERS):
        return False
    digits = [int(c) for c in number]
    doubled = [sum(divmod(2 * d, 10)) if i % 2 else d for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_phone(match: str) -> bool:
    digits = "".join(c for c in match if c.isdigit())
    # 555 is the exchange of American films, and of documentation.
    return 9 <= len(digits) <= 13 and len(set(digits)) > 3 and digits[-7:-4] != "555"


def _is_ip(match: str) -> bool:
    try:
        address = ipaddress.ip_address(match)
    except ValueError:
        return False
    # 1.2.3.4 is a section or a version.
    numbered = address.version == 4 and max(address.packed) < 20
    numbered |= address.version == 6 and match.replace(":", "").isdigit()  # numbers in a row
    return address.is_global and not numbered and match not in _RESOLVERS


_CHECKS: dict[str, Callable[[str], bool]] = {
    "private_key": lambda _: True,
    "email": _is_email,
    "iban": _is_iban,
    "card": _is_card,
    "phone": _is_phone,
    "ip": _is_ip,
}
