r"""Mathematics as plain text: LaTeX of the simple kind without its dress, and back where a LaTeX reader is asked.

`plain(r"\$32,\!348")` is `$32,348`, `plain(r"15\mbox{ cm}^2")` is `15 cm^2`, `plain(r"\frac34")` is `(3)/(4)`.
"""

import re
import unicodedata

LONGEST = 2000
"""Characters of an answer that are read; what is longer is none."""
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2012\u2013\u2014\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f\u2007\u2002\u2003", " "),
        **dict.fromkeys("\u200b\u2060\ufeff", ""),
        **{"\u00d7": "*", "·": "*", "÷": "/", "\u2044": "/", "π": "\\pi ", "∞": "\\infty ", "°": " degrees"},
        **{"²": "^2", "³": "^3", "\u222a": "\\cup ", "≤": "\\le ", "≥": "\\ge ", "±": "\\pm "},
    }
)
_SPACING = re.compile(r"\\[!,;:> ]|\\(?:quad|qquad|left|right|displaystyle|big|Big|limits)(?![a-zA-Z])|~")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm)?|mbox|math(?:rm|bf|it)|operatorname)\s*\{([^{}]*)\}")
_GROUP = r"(?:\{((?:[^{}]|\{[^{}]*\})*)\}|(\d|[a-zA-Z]|\\pi))"
_FRACTION = re.compile(rf"\\[dtc]?frac\s*{_GROUP}\s*{_GROUP}")
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+|[a-zA-Z]))|(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)")


def plain(text: str) -> str:
    """Return an answer without delimiters, spacing commands and `\\text`; fractions become `(a)/(b)`."""
    text = _without_delimiters(_vulgar_fractions(text).translate(_CHARACTERS).strip())
    text = re.sub(r",\\!\s*|\{,\}", ",", text).replace("\\$", "$").replace("\\%", "%").replace("\\#", "#")
    text = re.sub(r"\\(?:cdot|times|ast)(?![a-zA-Z])", "*", text).replace("\\div", "/")
    text = re.sub(r"\^\s*(?:\{\s*)?\\circ(?:\s*\})?|\\degree", " degrees", text)
    text = _TEXT.sub(r" \1 ", _SPACING.sub(lambda found: "" if found[0] != "~" else " ", text))
    for _ in range(3):
        text = _FRACTION.sub(_divided, text)
    text = re.sub(r"\s*([\^_])\s*(?:\{(-?\w+)\})?", r"\1\2", text)
    return " ".join(text.split()).rstrip(" .,;:")


def latex(text: str) -> str:
    """Return an answer as LaTeX, also where it was written as one writes in a program: `sqrt(2)`, `x**10`, `√3`."""
    text = _without_delimiters(text.translate(_CHARACTERS).replace(" degrees", "^\\circ").strip()).rstrip(" .,;:")
    # A dollar would end the formula that it is to be.
    text = re.sub(r"\\?\$", "", text)
    text = _ROOT.sub(lambda found: f"\\sqrt{{{found[1] or found[2] or found[3]}}}", text.replace("**", "^"))
    text = re.sub(r"\^\s*(-?\d{2,}|-\d)", r"^{\1}", text.replace("*", " \\cdot "))
    return re.sub(
        r"(?<![\\a-zA-Z])(pi|infinity)(?![a-zA-Z])", lambda f: f"\\{f[1][:5]} ".replace("infin", "infty"), text
    )


def _without_delimiters(text: str) -> str:
    """Take the dollars and brackets off that only say that mathematics stands between them."""
    text = text.rstrip(".") if text.endswith(("$.", ").", "].")) else text
    for opening, closing in _DELIMITERS:
        inner = text[len(opening) : -len(closing)]
        encloses = text.startswith(opening) and text.endswith(closing) and not text.endswith("\\" + closing)
        if inner and encloses and not re.search(rf"(?<!\\){re.escape(opening)}", inner):
            return inner.strip()
    return text


def _vulgar_fractions(text: str) -> str:
    """Return the text with `3½` as `3 1⁄2`."""
    normal = (unicodedata.normalize("NFKC", character) for character in text)
    return "".join(f" {n}" if "\u2044" in n and n != c else c for c, n in zip(text, normal, strict=True))


def _divided(found: "re.Match[str]") -> str:
    above, below = (found[2] if found[1] is None else found[1]), (found[4] if found[3] is None else found[3])
    return f" ({above.strip()})/({below.strip()})"
