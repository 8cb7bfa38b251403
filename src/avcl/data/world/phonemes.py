"""English phonemes as acoustic and visible targets, a pronunciation lexicon and a letter-to-sound fallback.

Formants (F1, F2, F3 in Hz) stand for a vocal tract of ``REFERENCE_TRACT_CM``; another tract scales them by
``REFERENCE_TRACT_CM / length``. Vowels follow Peterson & Barney (1952), loci and durations Klatt (1980), rounded.
Lips: ``opening`` in [0, 1] (0: closed, 1: wide open), ``width`` in [-1, 1] (rounded to spread), ``tuck`` in [0, 1]
(lower lip at the upper teeth). NaN means "whatever the neighbors do": that target is left to coarticulation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

REFERENCE_TRACT_CM = 17.0
FREE = float("nan")

Kind = Literal["silence", "vowel", "nasal", "glide", "stop", "fricative", "affricate"]


@dataclass(frozen=True)
class Phone:
    """Targets of one phoneme; ``end_*`` is where a diphthong goes. ``noise`` = (center Hz, bandwidth Hz, level) of
    the frication.

    ``seconds``: length at normal rate. ``voiced``: the folds vibrate during it.
    """

    symbol: str
    kind: Kind
    formants: tuple[float, float, float]
    seconds: float
    opening: float
    width: float
    voiced: bool = True
    noise: tuple[float, float, float] | None = None
    tuck: float = FREE
    end_formants: tuple[float, float, float] | None = None
    end_opening: float = FREE
    end_width: float = FREE

    @property
    def is_vowel(self) -> bool:
        return self.kind == "vowel"


def _vowel(symbol, formants, seconds, opening, width, end=None, end_opening=FREE, end_width=FREE):
    return Phone(symbol, "vowel", formants, seconds, opening, width, True, None, 0.0, end, end_opening, end_width)


_TABLE: tuple[Phone, ...] = (
    Phone("sil", "silence", (500, 1500, 2500), 0.15, 0.0, 0.0, False, tuck=0.0),
    # vowels: opening follows F1, width follows F2 and rounding
    _vowel("iy", (270, 2290, 3010), 0.120, 0.22, 0.90),
    _vowel("ih", (390, 1990, 2550), 0.090, 0.34, 0.60),
    _vowel("eh", (530, 1840, 2480), 0.100, 0.52, 0.50),
    _vowel("ae", (660, 1720, 2410), 0.140, 0.74, 0.55),
    _vowel("aa", (730, 1090, 2440), 0.150, 0.95, 0.05),
    _vowel("ao", (570, 840, 2410), 0.145, 0.68, -0.50),
    _vowel("uh", (440, 1020, 2240), 0.090, 0.34, -0.55),
    _vowel("uw", (300, 870, 2240), 0.130, 0.18, -0.95),
    _vowel("ah", (640, 1190, 2390), 0.100, 0.62, 0.10),
    _vowel("ax", (500, 1500, 2500), 0.060, 0.36, 0.10),
    _vowel("er", (490, 1350, 1690), 0.130, 0.34, -0.30),
    _vowel("ey", (480, 2000, 2600), 0.150, 0.46, 0.60, (330, 2200, 2850), 0.26, 0.80),
    _vowel("ay", (720, 1250, 2450), 0.180, 0.90, 0.15, (370, 2050, 2650), 0.32, 0.70),
    _vowel("oy", (560, 860, 2410), 0.190, 0.62, -0.60, (370, 2000, 2600), 0.32, 0.65),
    _vowel("aw", (720, 1250, 2440), 0.190, 0.90, 0.05, (420, 950, 2300), 0.30, -0.75),
    _vowel("ow", (500, 920, 2400), 0.160, 0.46, -0.55, (350, 820, 2250), 0.20, -0.90),
    # nasals: m closes the lips
    Phone("m", "nasal", (280, 1000, 2200), 0.075, 0.0, FREE, tuck=0.0),
    Phone("n", "nasal", (280, 1700, 2600), 0.065, 0.22, FREE),
    Phone("ng", "nasal", (280, 2200, 2800), 0.075, FREE, FREE),
    # glides and liquids
    Phone("l", "glide", (320, 1050, 2880), 0.070, 0.34, FREE),
    Phone("r", "glide", (320, 1080, 1400), 0.070, 0.26, -0.45),
    Phone("w", "glide", (290, 620, 2150), 0.075, 0.12, -1.00),
    Phone("y", "glide", (260, 2150, 3020), 0.065, 0.22, 0.70),
    # stops: seconds of the closure; noise is the burst; p and b close the lips
    Phone("p", "stop", (250, 850, 2150), 0.085, 0.0, FREE, False, (1000, 1400, 0.35), 0.0),
    Phone("b", "stop", (250, 850, 2150), 0.070, 0.0, FREE, True, (800, 1000, 0.25), 0.0),
    Phone("t", "stop", (300, 1750, 2650), 0.075, 0.20, FREE, False, (4600, 2600, 0.60)),
    Phone("d", "stop", (270, 1700, 2600), 0.060, 0.20, FREE, True, (4000, 2400, 0.40)),
    Phone("k", "stop", (300, 2000, 2500), 0.080, FREE, FREE, False, (1900, 900, 0.55)),
    Phone("g", "stop", (270, 2000, 2450), 0.065, FREE, FREE, True, (1800, 900, 0.40)),
    # fricatives
    Phone("f", "fricative", (340, 1100, 2080), 0.095, 0.06, FREE, False, (5200, 4500, 0.28), 1.0),
    Phone("v", "fricative", (300, 1100, 2080), 0.065, 0.06, FREE, True, (5000, 4500, 0.14), 1.0),
    Phone("th", "fricative", (320, 1290, 2540), 0.095, 0.18, FREE, False, (5800, 4000, 0.24)),
    Phone("dh", "fricative", (290, 1290, 2540), 0.050, 0.18, FREE, True, (5600, 4000, 0.10)),
    Phone("s", "fricative", (320, 1390, 2530), 0.105, 0.14, 0.35, False, (6000, 1800, 0.75)),
    Phone("z", "fricative", (280, 1390, 2530), 0.075, 0.14, 0.35, True, (5800, 1900, 0.40)),
    Phone("sh", "fricative", (300, 1840, 2750), 0.110, 0.20, -0.65, False, (3200, 1500, 0.80)),
    Phone("zh", "fricative", (290, 1840, 2750), 0.075, 0.20, -0.65, True, (3100, 1500, 0.45)),
    Phone("hh", "fricative", (FREE, FREE, FREE), 0.060, FREE, FREE, False, None),
    # affricates: closure, then frication
    Phone("ch", "affricate", (300, 1840, 2750), 0.120, 0.20, -0.55, False, (3400, 1700, 0.75)),
    Phone("jh", "affricate", (280, 1840, 2750), 0.100, 0.20, -0.55, True, (3200, 1700, 0.50)),
)
PHONES = MappingProxyType({p.symbol: p for p in _TABLE})

# word = phones; "1" marks the stressed vowel. What captions, the closed vocabularies and small talk need.
_LEXICON_TEXT = """
a=ax; an=ae n; and=ae n d; the=dh ax; of=ah v; in=ih n; on=aa n; at=ae t; to=t uw; with=w ih dh; from=f r ah m
by=b ay; is=ih z; are=aa r; it=ih t; its=ih t s; as=ae z; off=ao1 f; out=aw1 t; while=w ay1 l; then=dh eh1 n
but=b ah t; or=ao r; two=t uw1; three=th r iy1; four=f ao1 r; one=w ah1 n; five=f ay1 v; six=s ih1 k s
seven=s eh1 v ax n; eight=ey1 t; nine=n ay1 n; ten=t eh1 n; zero=z ih1 r ow; no=n ow1; not=n aa1 t; now=n aw1
here=hh ih1 r; there=dh eh1 r; red=r eh1 d; green=g r iy1 n; blue=b l uw1; yellow=y eh1 l ow; orange=ao1 r ax n jh
purple=p er1 p ax l; white=w ay1 t; black=b l ae1 k; gray=g r ey1; grey=g r ey1; cyan=s ay1 ae n
magenta=m ax jh eh1 n t ax; pink=p ih1 ng k; brown=b r aw1 n; violet=v ay1 ax l ax t; teal=t iy1 l; gold=g ow1 l d
silver=s ih1 l v er; lime=l ay1 m; olive=aa1 l ih v; navy=n ey1 v iy; small=s m ao1 l; large=l aa1 r jh; big=b ih1 g
medium=m iy1 d iy ax m; tiny=t ay1 n iy; huge=hh y uw1 jh; little=l ih1 t ax l; disk=d ih1 s k
triangle=t r ay1 ae ng g ax l; ring=r ih1 ng; bar=b aa1 r; square=s k w eh1 r; circle=s er1 k ax l; ball=b ao1 l
box=b aa1 k s; star=s t aa1 r; cross=k r ao1 s; object=aa1 b jh eh k t; objects=aa1 b jh eh k t s; wood=w uh1 d
wooden=w uh1 d ax n; metal=m eh1 t ax l; glass=g l ae1 s; steel=s t iy1 l; rubber=r ah1 b er; stone=s t ow1 n
bounces=b aw1 n s ih z; bounce=b aw1 n s; bouncing=b aw1 n s ih ng; shakes=sh ey1 k s; shake=sh ey1 k
shaking=sh ey1 k ih ng; shaken=sh ey1 k ax n; plucked=p l ah1 k t; pluck=p l ah1 k; plucks=p l ah1 k s; bowed=b ow1 d
bow=b ow1; struck=s t r ah1 k; moves=m uw1 v z; moving=m uw1 v ih ng; move=m uw1 v; silent=s ay1 l ax n t
silently=s ay1 l ax n t l iy; hits=hh ih1 t s; sound=s aw1 n d; sounds=s aw1 n d z; sounding=s aw1 n d ih ng
screen=s k r iy1 n; left=l eh1 f t; right=r ay1 t; center=s eh1 n t er; middle=m ih1 d ax l; side=s ay1 d
near=n ih1 r; far=f aa1 r; loud=l aw1 d; soft=s ao1 f t; loudly=l aw1 d l iy; softly=s ao1 f t l iy
slowly=s l ow1 l iy; slow=s l ow1; fast=f ae1 s t; quickly=k w ih1 k l iy; quiet=k w ay1 ax t; high=hh ay1; low=l ow1
behind=b ih hh ay1 n d; front=f r ah1 n t; another=ax n ah1 dh er; person=p er1 s ax n; says=s eh1 z; say=s ey1
sees=s iy1 z; see=s iy1; has=hh ae1 z; buys=b ay1 z; finds=f ay1 n d z; wants=w aa1 n t s; keeps=k iy1 p s
speaks=s p iy1 k s; speaking=s p iy1 k ih ng; talks=t ao1 k s; plays=p l ey1 z; playing=p l ey1 ih ng
player=p l ey1 er; notes=n ow1 t s; note=n ow1 t; piano=p iy ae1 n ow; marimba=m ax r ih1 m b ax; guitar=g ih t aa1 r
cello=ch eh1 l ow; violin=v ay ax l ih1 n; music=m y uw1 z ih k; face=f ey1 s; voice=v oy1 s; someone=s ah1 m w ah n
neutral=n uw1 t r ax l; happy=hh ae1 p iy; sad=s ae1 d; angry=ae1 ng g r iy; fearful=f ih1 r f ax l
surprised=s er p r ay1 z d; calm=k aa1 m; mama=m aa1 m ax; papa=p aa1 p ax; baba=b aa1 b ax; mat=m ae1 t; pat=p ae1 t
bat=b ae1 t; mill=m ih1 l; pill=p ih1 l; bill=b ih1 l; tail=t ey1 l; nail=n ey1 l; dale=d ey1 l; fan=f ae1 n
van=v ae1 n; shoe=sh uw1; boat=b ow1 t; moon=m uw1 n; fish=f ih1 sh; house=hh aw1 s; tree=t r iy1; dog=d ao1 g
cat=k ae1 t; wheel=w iy1 l; tea=t iy1; toy=t oy1; chair=ch eh1 r; today=t ax d ey1; again=ax g eh1 n; soon=s uw1 n
please=p l iy1 z; this=dh ih1 s; that=dh ae1 t; you=y uw1; we=w iy1; i=ay1; yes=y eh1 s; hello=hh ax l ow1
world=w er1 l d; time=t ay1 m; water=w ao1 t er; open=ow1 p ax n; door=d ao1 r; be=b iy; was=w ah z
"""
LEXICON = MappingProxyType(
    {
        word.strip(): tuple(phones.split())
        for entry in _LEXICON_TEXT.replace("\n", ";").split(";")
        if entry.strip()
        for word, phones in [entry.split("=")]
    }
)


# Letter-to-sound: pattern at the current letter = phones; the first match wins; look-around sees the whole word.
_RULE_TEXT = r"""
tion|sion|cian=sh ax n; ture$=ch er; ough=ow; augh=ao; eigh=ey; igh=ay; tch=ch; dge=jh; sch=s k; ch=ch; sh=sh; th=th
ph=f; wh=w; ^kn=n; ^wr=r; ^gn=n; mb$=m; ck=k; qu=k w; nk=ng k; ng(?=s?$)=ng; ng=ng g; gh=; x=k s; ai|ay|ey$|ei=ey
ee|ea|ie(?=[a-z])=iy; ie$=iy; oa|oe$=ow; oo(?=k)=uh; oo=uw; ou|ow(?=[a-z])=aw; ow$=ow; oi|oy=oy; au|aw=ao
ue$|ew|ui=uw; eu=y uw; air|are$=eh r; ear$|eer=ih r; ar(?![aeiouy])=aa r; or(?![aeiouy])=ao r; [eiu]r(?![aeiouy])=er
(?<=[td])ed$=ax d; (?<=[aeiouy].)ed$=d; (?<=[cksxz])es$=ih z; (?<=[aeiouy][a-z])e$=; (?<=[aeiouy][a-z][a-z])e$=
le$=ax l; ^e$|e$=iy; e(?=s$)=; a(?=[^aeiouwxy]e)=ey; e(?=[^aeiouwxy]e)=iy; i(?=[^aeiouwxy]e)=ay; o(?=[^aeiouwxy]e)=ow
u(?=[^aeiouwxy]e)=uw; a(?=[^aeiouy]?$)(?<=.{3})=ax; y$(?<=[aeiouy].y)=iy; y$(?<=[aeiouy]..y)=iy; y$=ay; ^y=y; y=ih
a=ae; e=eh; i=ih; o=aa; u=ah; c(?=[eiy])=s; c=k; g(?=[eiy])=jh; (?<=[aeiou])s(?=[aeiou])=z; (?<=[bdgvmnlr])s$=z; b=b
d=d; f=f; g=g; h=hh; j=jh; k=k; l=l; m=m; n=n; p=p; r=r; s=s; t=t; v=v; w=w; z=z
"""
_RULES = tuple(
    (re.compile(pattern.strip()), tuple(phones.split()))
    for entry in _RULE_TEXT.replace("\n", ";").split(";")
    if entry.strip()
    for pattern, phones in [entry.rsplit("=", 1)]
)
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def words_of(text: str) -> tuple[str, ...]:
    """Lower-case words of a text in order; digits are read one by one, everything that is no letter separates.

    >>> words_of("2 red disks, bouncing.")
    ('two', 'red', 'disks', 'bouncing')
    """
    tokens = re.findall(r"[a-z]+|[0-9]", text.lower().replace("'", ""))
    return tuple(_DIGITS[int(t)] if t.isdigit() else t for t in tokens)


def letters_to_phones(word: str) -> tuple[str, ...]:
    """Phones of a word that is not in the lexicon; the first full vowel is stressed, doubled sounds are said once."""
    phones: list[str] = []
    position = 0
    while position < len(word):
        for pattern, out in _RULES:
            match = pattern.match(word, position)
            if match and match.end() > position:
                phones += [p for p in out if not (phones and phones[-1] == p)]
                position = match.end()
                break
        else:
            position += 1  # a letter no rule knows (not English) is silent
    if not any(PHONES[p].is_vowel for p in phones):
        phones.append("ax")
    stressed = next((i for i, p in enumerate(phones) if PHONES[p].is_vowel and p != "ax"), None)
    return tuple(p + "1" if i == stressed else p for i, p in enumerate(phones))


def _inflected(word: str) -> tuple[str, ...] | None:
    """A plural or third person whose stem is in the lexicon."""
    for suffix, voiced, unvoiced, hissed in (("s", ("z",), ("s",), None), ("es", None, None, ("ih", "z"))):
        stem = LEXICON.get(word.removesuffix(suffix)) if word.endswith(suffix) else None
        if stem:
            last = stem[-1].rstrip("1")
            hisses = last in {"s", "z", "sh", "zh", "ch", "jh"}
            ending = hissed if hisses else (voiced if PHONES[last].voiced else unvoiced)
            if ending:
                return stem + ending
    return None


def pronounce(word: str) -> tuple[str, ...]:
    """Phones of one word, stress marked by "1": lexicon, then inflection of a known stem, then letter-to-sound."""
    return LEXICON.get(word) or _inflected(word) or letters_to_phones(word)


def pronounce_all(text: str | Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(word, phones) of a text or of a sequence of words."""
    words = words_of(text) if isinstance(text, str) else tuple(w for t in text for w in words_of(t))
    return tuple((word, pronounce(word)) for word in words)
