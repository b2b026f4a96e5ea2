"""What tells who wrote a text, taken out of it before it is stored: e-mail addresses, phone and card numbers.

Patterns and not a library: `phonenumbers` wants to be told the country, `scrubadub` and `presidio` bring language
models that are larger than ours. A pattern stands for one way in which people write such a number; what is only a row
of digits (a year, a price, a date, an order number) stays. So this protects from carelessness, not from someone who
hides a number. `\\w` would take in Chinese characters, between which numbers stand without a space: the borders below
are of letters and digits of the Latin alphabet.
"""

import re
from collections.abc import Callable

# What a Chinese or Japanese keyboard writes for digits, `+`, `-`, `(`, `)`, `@` and `.`.
FULL_WIDTH = {0xFF10 + digit: str(digit) for digit in range(10)} | dict(
    zip(map(ord, "＋－（）＠．"), "+-()@.", strict=True)
)
LATIN = r"0-9A-Za-z\u00c0-\u024f"
EMAIL = re.compile(rf"[{LATIN}._%+\-]{{1,64}}@(?:[{LATIN}\-]{{1,63}}\.){{1,8}}[A-Za-z]{{2,24}}")

DASH = r"[ \u00a0\-‐‑–]"
# 13 to 19 digits: in one piece, in fours, or as American Express prints them.
CARD = re.compile(
    rf"(?<![\d.,])(?:(?P<fours>\d{{4}}({DASH})\d{{4}}\2\d{{4}}\2\d{{1,4}})(?P<tail>{DASH}\d{{1,3}})?"
    rf"|3[47]\d{{2}}({DASH})\d{{6}}\4\d{{5}}|\d{{13,19}})(?!\d)"
)

BEFORE = rf"(?<![{LATIN}_.,+\-/$€£¥#])"
AFTER = rf"(?![{LATIN}_])(?![.,]\d)"
GAP = r"[ \u00a0.\-‐‑–/]"
DATE = r"(?!\d{1,2}[./\-]\d{1,2}[./\-](?:\d{4}|\d{2})(?![./\-]?\d))"
PHONES = [
    re.compile(BEFORE + pattern + AFTER)
    for pattern in (
        # International: +49 30 1234567, 0044 (0)20 7946 0958, +86-138-1234-5678
        rf"(?:\+|00){GAP}?[1-9](?:{GAP}?\(?\d\)?){{7,14}}",
        # With an area code in brackets: (212) 555-0187, (030) 123456, (11) 91234-5678
        rf"(?:1{GAP})?\((?!(?:19|20)\d\d\))\d{{2,5}}\){GAP}?\d{{3,5}}(?:{GAP}?\d{{2,5}}){{1,3}}",
        # With a leading zero, as nearly all of Europe, Japan and China's landlines: 020 7946 0958, 030/1234567
        rf"{DATE}0(?=\d)(?:{GAP}?\d){{8,11}}",
        # North America: 212-555-0187, 1.212.555.0187
        rf"(?:1{GAP})?[2-9]\d\d{GAP}\d{{3}}{GAP}\d{{4}}",
        # China's mobiles: 13812345678, 138 1234 5678
        rf"1[3-9]\d(?:{GAP}?\d{{4}}){{2}}",
        # Ten digits, as in India or the United States: 9876543210, 98765 43210
        rf"[2-9]\d{{4}}{GAP}?\d{{5}}",
    )
]


def mask_text(text: str) -> str:
    """Put `[email]`, `[card]` and `[phone]` in the place of such; a masked text stays as it is."""
    plain = text.translate(FULL_WIDTH)
    masked = CARD.sub(_mask_card, EMAIL.sub("[email]", plain))
    for pattern in PHONES:
        masked = pattern.sub("[phone]", masked)
    return text if masked == plain else masked


def _mask_card(match: re.Match) -> str:
    """Mask digits whose last one is the check digit; three more behind groups of four may be another number."""
    if is_card(match[0]):
        return "[card]"
    if match["tail"] and is_card(match["fours"]):
        return "[card]" + match["tail"]
    return match[0]


def is_card(number: str) -> bool:
    """Say whether 13 to 19 digits, with anything between them, begin as cards do and fulfil the Luhn formula."""
    digits = [int(letter) for letter in number if letter.isdecimal()]
    if not 13 <= len(digits) <= 19 or digits[0] not in (2, 3, 4, 5, 6):
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def masker(is_wanted: bool) -> Callable[[str], str]:
    """Give what a setting asks for: `mask_text`, or the text as it is."""
    return mask_text if is_wanted else str
