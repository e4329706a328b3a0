"""Odd texts: what keyboards, phones, crawlers and attackers send."""

from __future__ import annotations

from collections.abc import Iterator

MIB = 1024 * 1024


def texts() -> Iterator[tuple[str, bytes]]:
    """About 60 texts by name, as bytes: some are no valid UTF-8."""
    for name, text in _valid():
        yield name, text.encode()
    yield from _invalid()


def _valid() -> Iterator[tuple[str, str]]:
    yield "empty", ""
    yield "space", " "
    yield "one letter", "a"
    yield "newlines", "\n" * 1000
    yield "tabs and returns", "\t\r\v\f" * 100
    yield "NUL", "\0"
    yield "NUL within", "a red\0bird"
    yield "all control characters", "".join(map(chr, range(32))) + "\x7f" + "\x80\x9f"
    yield "bell and escape", "\x07\x1b[31mred\x1b[0m\x1b]0;title\x07"
    yield "BOM", "\ufeffa red bird"
    yield "BOM alone", "\ufeff"
    yield "BOM within", "a\ufeffred\ufeffbird"
    yield "not a character", "\ufffe\uffff\U0010ffff"
    yield "replacement", "\ufffd" * 50
    yield "private use", "\ue000\uf8ff\U000f0000"
    yield "unassigned", "\u0378\U000e0fff"
    yield "right to left", "\u05e6\u05d9\u05e4\u05d5\u05e8 \u0637\u0627\u0626\u0631"
    yield "bidi overrides", "\u202ea red bird\u202c\u2066x\u2069"
    yield "bidi unbalanced", "\u202e\u202d\u2067" * 500
    yield "zero width", "r\u200be\u200cd\u200d\u2060"
    yield "zero width alone", "\u200b" * 1000
    yield "combining alone", "\u0301"
    yield "combining tower", "a" + "\u0301\u0327\u0489" * 10_000
    yield "many towers", ("z" + "\u0335" * 50) * 1000
    yield "decomposed", "e\u0301 u\u0308 n\u0303 \u1112\u1161\u11ab"
    yield "composed", "\u00e9 \u00fc \u00f1 \ud55c"
    yield "expands sixteenfold", "\ufdfa" * 5000
    yield "ligatures", "\ufb01\ufb02\u0132\u01c4" * 100
    yield "emoji", "\U0001f426"
    yield "family", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"
    yield "family without an end", "\U0001f468\u200d" * 2000
    yield "skin tones", "\U0001f44b\U0001f3fb\U0001f44b\U0001f3ff" * 100
    yield "flags", "\U0001f1e9\U0001f1ea" * 500 + "\U0001f1e9"
    yield "tags", "\U0001f3f4" + "\U000e0067\U000e0062" * 100 + "\U000e007f"
    yield "variation selectors", "\u2764\ufe0f\u2764\ufe0e" + "\ufe00" * 100
    yield "Chinese", "\u4e00\u53ea\u7ea2\u9e1f" * 100
    yield "Thai", "\u0e19\u0e01\u0e2a\u0e35\u0e41\u0e14\u0e07" * 50
    yield "Devanagari", "\u0932\u093e\u0932 \u092a\u0915\u094d\u0937\u0940" * 50
    yield "Telugu", "\u0c1c\u0c4d\u0c1e\u200c\u0c3e"
    yield "mathematical letters", "\U0001d4b6 \U0001d4c7\U0001d452\U0001d4b9"
    yield "superscripts", "\u00b2\u00b3\u2460\u216b\u00bd"
    yield "dotless i", "\u0130I\u0131i" * 200
    yield "sharp s", "STRASSE stra\u00dfe \u1e9e"
    yield "full width", "\uff21\uff22\uff23\u3000\uff11"
    yield "soft hyphens", "r\u00ade\u00add\u00ad" * 500
    yield "line separators", "a\u2028b\u2029c\u0085d"
    yield "script", "<script>alert(1)</script><img src=x onerror=alert(1)>"
    yield "template", "{{7*7}} ${7*7} %s %n %(x)s {0} {0.__class__}"
    yield "quotes", "'\"`\\'; DROP TABLE records; --"
    yield "special tokens", "[CLS] [SEP] [MASK] [PAD] <s> </s> <|endoftext|> [UNK]" * 20
    yield "number", "9" * 5000
    yield "not a number", "nan inf -inf NaN 1e999"
    yield "one word of 100 kB", "a" * 100_000
    yield "hashes of 100 kB", "#" * 100_000
    yield "200,000 words", "a " * 200_000
    yield "200,000 different words", " ".join(map(str, range(140_000)))
    yield "1 MB of one letter", "a" * 1_000_000
    yield "1 MiB of one letter", "a" * MIB
    yield "1 MiB and one", "a" * (MIB + 1)
    yield "1 MB of emoji", "\U0001f426" * 250_000
    yield "1 MB of towers", ("a" + "\u0301" * 99) * 5000
    yield "1 MB of Chinese", "\u9e1f" * 333_000
    yield "1 MB of spaces", " " * 1_000_000
    yield "10 MB", "a red bird " * 1_000_000


def _invalid() -> Iterator[tuple[str, bytes]]:
    yield "lone surrogate", b"a \xed\xa0\x80 bird"
    yield "surrogate pair in UTF-8", b"\xed\xa0\xbd\xed\xb0\xa6"
    yield "Latin-1", "ein r\xf6tlicher Vogel".encode("latin-1")
    yield "UTF-16", "a red bird".encode("utf-16")
    yield "overlong", b"\xc0\xaf\xe0\x80\xaf"
    yield "above Unicode", b"\xf4\x90\x80\x80"
    yield "half a character", "\u9e1f".encode()[:2]
    yield "continuation alone", b"\x80" * 1000
