"""Probes: texts that tokenizers tell apart: spaces and lines, digits, many scripts, marks, contractions, code."""

PROBES = (
    "", " ", "  ", "a", " a", "  a b  c ", "\n", "\n\n", " \n \n\n \t x", "a\r\nb\r\n\r\nc", "\t\t\tif x:\n\t\t\t\treturn 1\n",
    "The year 1945, 3.14159, 1,234,567 and 00:59.", "x1y22z333 4444 55555  666666", "I'm you're HE'LL they'VE it's 'tis '90s",
    "don't Don'T DON'T", "naïve café Ünïcödé ß ſ", "Привет, мир! Ещё раз.", "你好，世界。今天是2024年。", "こんにちは世界ｶﾀｶﾅ",
    "안녕하세요 세계", "مرحبا بالعالم ٣٤٥", "नमस्ते दुनिया १२३", "שלום עולם", "ไทย ภาษา", "🦙🦙 🚀👩‍👩‍👧 ✅️", "a²³ ½ Ⅷ ①",
    "(brackets) [and] {braces} <tags/> & `code`", "!!!??...---___===***", "https://example.org/a?b=c&d=%20#e", "C:\\path\\file.txt",
    "def f(x: int = 3) -> str:\n    return f\"{x!r}\"  # comment\n", "\u00a0\u2003\u3000x", "a\u0301e\u0308", "\ufeffmark",
    "### User:\nHello\n\n### Assistant:\n", "word" * 40, "\x00\x01\x7f", "ﬁ ligature ™ ©", "‘quotes’ “double” – — …",
)  # fmt: skip
