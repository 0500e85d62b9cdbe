"""Sentences and tokens as the Penn Treebank's tools count them, without their data files.

IFEval's figures were made with NLTK: sentences with Punkt (Kiss and Strunk 2006) and its English model, tokens with the
Treebank conventions. Both are small sets of rules, and these are the ones that decide in ordinary text. Punkt's model
also holds how each of 20,000 newspaper words was spelt; here a list of common words stands for it. It differs only
where a full stop follows an abbreviation, an initial or a number. tests/verifiers/test_penn.py says how far it agrees.

For counting sentences as a reader does, see `rlaif.checks.count_sentences`: Punkt ends one at "e.g." and after the
"1." of a list.
"""

import re

# What Punkt's English model holds for an abbreviation, without the full stop. Newspaper English: "etc" is none.
_ABBREVIATED = """
    adm ala ariz aug ave bros calif capt cie co col colo conn corp cos ct dec dr fla feb fri ft ga gen ill inc jan jr
    kan ky lt ltd maj messrs mg mich minn mr mrs ms nev nov oct okla ore pa ph.d prof rep reps sen sep sept sr st
    sw tenn tues va vs vt wash wed wis yr ok
    a.c a.d a.m c.v d.c e.h e.l e.m h.w j.b j.c j.j j.k j.p j.r k.k l.a l.p m.d n.c n.d n.h n.j n.m n.v n.y p.m r.j s.a
    s.c s.g s.p.a u.k u.n u.s u.s.a u.s.s.r w.va w.w"""
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())
_LETTERS = frozenset("cdeghklmnprstvw")  # the letters among them; the others are initials only before a name
# Words that are no names: written large after an abbreviation they begin a sentence.
_NO_NAMES = """
    a after all also although an and another any are as at be because before both but by can could despite did do
    does during each even every few finally first for from had has have he her here his how however i if in indeed
    instead is it its just last later let like many may meanwhile more most much my nevertheless new next no nonetheless
    not nothing now of on once one only or other our over please several she should similarly since so some sometimes
    still such than thank that the their then there therefore these they this those though thus to today together under
    until upon was we were what when where whether which while who why will with would yet you your"""
_COMMON = frozenset(_NO_NAMES.split())
_CLOSERS = "\"')]}"
# A terminator counts where white space or one of these follows; a comma or a letter does not end anything.
_END = re.compile(r"[.?!](?=[)\";}\]*:@'({\[!?]|$)")
_SPLIT = re.compile(r"[\s«“‘„`»”’\"\[\](){}<>;@#$%&?!*\u2012-\u2015]+|--|\.{2,}|[:,](?!\d)")
_CLITIC = re.compile(r"(?s)(.*?)('[sS]|'[mM]|'[dD]|'ll|'LL|'re|'RE|'ve|'VE|n't|N'T)?")
_JOINED = frozenset({"CANNOT", "GONNA", "GOTTA", "WANNA", "GIMME", "LEMME"})  # two tokens each
_CHUNK = re.compile(r"(\s*)(\S+)")
_LEADING = "(\"`{[:;&#*@)}],-'"
_NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*")


def count_sentences(text: str) -> int:
    """Sentences of ``text``, as Punkt's English model counts them. Linear time."""
    count, previous, chunk, line_start = 0, "", "", True
    for found in _CHUNK.finditer(text):
        if chunk:
            count += _ends_sentence(chunk, found[2], line_start)
        previous, chunk, line_start = chunk, found[2], not found.start() or "\n" in found[1]
    if not chunk or (count and previous[-1] in ".?!" and not chunk.strip(_CLOSERS)):
        return count  # nothing is left, or the closing quote of the sentence before
    return count + 1 + _leaves_a_rest(chunk)


def capital_words(text: str) -> int:
    """How many Treebank tokens of ``text`` are written in capitals: "DON'T" is two ("DO", "N'T"), "A4" is one."""
    count = 0
    for piece in _SPLIT.split(text):
        stem, clitic = _CLITIC.fullmatch(piece).groups()  # type: ignore[union-attr]  # it matches every text
        count += stem.isupper() + bool(clitic and clitic.isupper())
        count += stem.upper() in _JOINED and stem.isupper()
    return count


def _ends_sentence(chunk: str, following: str, line_start: bool) -> bool:
    """Whether a sentence ends within or after ``chunk``, a run without white space."""
    end = _last_end(chunk)
    if end is None:
        return False
    if chunk[end] != ".":
        return True
    after = chunk[end + 1 :] or following
    word = _word(chunk[:end])
    if word.endswith(".") or _is_abbreviation(word):  # "..." or "Dr."
        return _begins_sentence(after)
    if _NUMBER.fullmatch(word):
        return not after[:1].islower()
    if len(word) == 1 and word.isalpha():
        return _is_outline(word, after, line_start)
    return True


def _is_outline(letter: str, after: str, line_start: bool) -> bool:
    """Whether the letter is a point of an outline ("A. Introduction"), not an initial ("A. Miller")."""
    if not after[:1].isupper():
        return letter not in _LETTERS and not after[:1].islower()
    if letter in _LETTERS:
        return line_start and after.isalpha() and not _begins_sentence(after)
    return line_start or _begins_sentence(after)


def _last_end(chunk: str) -> int | None:
    if not ("." in chunk or "?" in chunk or "!" in chunk):
        return None
    last = None
    for match in _END.finditer(chunk):
        last = match.start()
    return last


def _leaves_a_rest(chunk: str) -> bool:
    """Whether the last chunk of a text holds an end with more than closing quotes and brackets after it ("Yes.*")."""
    end = _last_end(chunk)
    if end is None or end == len(chunk) - 1 or not chunk[end + 1 :].strip(_CLOSERS):
        return False
    return _ends_sentence(chunk, "", False)


def _word(chunk: str) -> str:
    return re.split(r"[\[(\"{:;*@)}\]]", chunk)[-1].lstrip(_LEADING).lower()


def _is_abbreviation(word: str) -> bool:
    return word in _ABBREVIATIONS or word.rpartition("-")[2] in _ABBREVIATIONS


def _begins_sentence(word: str) -> bool:
    return word[:1].isupper() and re.sub(r"\W.*", "", word, flags=re.DOTALL).lower() in _COMMON
