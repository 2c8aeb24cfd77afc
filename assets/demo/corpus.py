"""Make the training text of the bundled demo model from freely licensed English prose in Debian packages.

    python assets/demo/corpus.py OUT_FOLDER

Each package of the table is downloaded with apt-get (no installation, any user), unpacked in a scratch folder, read,
stripped of markup and reduced to prose. OUT_FOLDER gets <package>.jsonl with one {"text": ...} per document, and
sources.json with the version, the licence and the size of what was taken.
"""

import gzip
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

SHORT = 400  # characters; a shorter document is joined with the next one
DOC = "usr/share/doc"
PYTHON = f"{DOC}/python3.11/html"
RUST = f"{DOC}/rust-doc/html"
CRAWL = "usr/share/crawl/dat"
CAMPAIGNS = "did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs"
PYTHON_PARTS = "tutorial howto faq whatsnew library reference using extending"
RUST_BOOKS = "book nomicon embedded-book edition-guide reference rust-by-example rustc rustdoc"

# Elements of HTML and Mallard
SKIP_TAGS = "script style pre nav header footer table dt h1 h2 h3 h4 h5 h6 title info screen aside head svg"
BLOCK_TAGS = "p div li dd dl ul ol body section article blockquote main item steps note list page hr"
VOID_TAGS = "area base br col hr img input meta source wbr"


class Source(NamedTuple):
    """A package: the groups of files (the first are preferred), the reader, the licence, the cap, files to leave."""

    package: str
    groups: tuple[str, ...]
    reader: str
    licence: str
    cap: int | None = None
    leave: str = ""
    words: int = 8


SOURCES = [
    *(
        Source(f"wesnoth-1.16-{name}", ("usr/share/games/wesnoth/**/*.cfg",), "wesnoth", "GPL-2.0-or-later", words=4)
        for name in CAMPAIGNS.split()
    ),
    Source("bible-kjv-text", ("usr/lib/bible.data",), "bible", "public domain", 1_500_000),
    Source("jargon-text", (f"{DOC}/jargon-text/jargon.txt.gz",), "jargon", "public domain", 1_200_000),
    Source(
        "crawl-common", (f"{CRAWL}/*/*.txt",), "crawl", "GPL-2.0-or-later", 700_000, r"quotes|FAQ|help|hints|tutorial"
    ),
    Source(
        "debian-handbook", (f"{DOC}/debian-handbook/html/en-US/*.html",), "html", "GPL-2.0-or-later OR CC-BY-SA-3.0"
    ),
    Source("debian-history", (f"{DOC}/debian-history/docs/*.en.html",), "html", "GPL-2.0-or-later"),
    Source(
        "debian-faq", (f"{DOC}/debian/FAQ/*.en.html",), "html", "Debian FAQ licence (copyleft, modification allowed)"
    ),
    Source("debian-reference-en", ("usr/share/debian-reference/*.en.html",), "html", "GPL-2.0-or-later"),
    Source("debian-policy", (f"{DOC}/debian-policy/policy.html/*.html",), "html", "GPL-2.0-or-later"),
    Source("developers-reference", ("usr/share/developers-reference/*.html",), "html", "GPL-2.0-or-later"),
    Source(
        "python3.11-doc",
        tuple(f"{PYTHON}/{part}/*.html" for part in PYTHON_PARTS.split()),
        "html",
        "PSF-2.0",
        2_500_000,
        r"changelog",
    ),
    Source(
        "postgresql-doc-15", (f"{DOC}/postgresql-doc-15/html/*.html",), "html", "PostgreSQL", 2_000_000, r"release-"
    ),
    Source(
        "sqlite3-doc",
        (f"{DOC}/sqlite3/*.html", f"{DOC}/sqlite3/c3ref/*.html"),
        "html",
        "public domain",
        2_000_000,
        r"crossref|index|sitemap|consortium|copyright|capi3ref|changes|news|requirements|chronology|doclist|fullsql",
    ),
    Source("apache2-doc", (f"{DOC}/apache2-doc/manual/en/**/*.html",), "html", "Apache-2.0", 1_500_000, r"license"),
    Source("git-doc", (f"{DOC}/git-doc/**/*.html",), "html", "GPL-2.0-only", 1_000_000),
    Source(
        "rust-doc",
        tuple(f"{RUST}/{book}/*.html" for book in RUST_BOOKS.split()),
        "html",
        "(MIT OR Apache-2.0) AND CC-BY-SA-4.0",  # the prose of the embedded book has the second
        1_500_000,
        r"print\.html",
    ),
    Source("gnome-user-docs", ("usr/share/help/C/**/*.page",), "html", "CC-BY-SA-3.0", 1_000_000),
    Source(
        "perl-doc",
        ("usr/share/perl/*/pod/*.pod",),
        "pod",
        "GPL-1.0-or-later OR Artistic-1.0-Perl",
        1_500_000,
        r"delta|perl(toc|api|intern|gpl|artistic|cn|jp|ko|tw|hist|uniprops|modlib|podstyle)\.pod",
    ),
]

PLAIN = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′`´", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–−", "-"),
        **dict.fromkeys("—―", " - "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad¶®™", None),
        "…": "...",
        "ﬁ": "fi",
        "ﬂ": "fl",
    }
)
BOILERPLATE = re.compile(
    r"copyright ?(\(c\)|©|\d)|all rights reserved|without (any )?warranty|merchantab|permission is (hereby )?granted"
    r"|https?:|ftp:|www\.|wesnoth\.org|\S@\S+\.\w|\b(New|Changed|Deprecated|Added|Removed) (in|since) version"
    r"|^(Source code:|See also|Availability:|.The (next|previous) cartoon|(Listing|Figure|Table|Example) \d)"
    r"|^(Part of|Documentation by|Written by|Contributed by|Translated by|This page (was|is) (last|generated))\b",
    re.I,
)
NEVER = re.compile(r"[<>{}|\\]")
ODD = re.compile(r"[=@#~^$_*+&%/\[\]]")
CODE = re.compile(r"\w[._(:/]\w|\w\(\)|\d[a-z]|[a-z][A-Z]|^['\"(]?-+\w|^['\"(]?\.\w")
SENTENCE = re.compile(r"""["'(]*[A-Z].*[.!?]["')]*""")
ENGLISH = re.compile(
    r"\b(the|and|of|to|is|are|you|it|this|that|in|for|with|not|be|we|my|your|have|will|was|but|on|as|from|all|can|by|if)\b",
    re.I,
)
LETTERS = re.compile(r"[^\W\d_]|\s")


def tidy(text: str) -> str:
    """Plain quotes and hyphens, single spaces."""
    text = re.sub(r"``|''", '"', text).translate(PLAIN)
    text = re.sub(r"\s*\[\d+\]", "", text)
    text = " ".join(text.split())
    return re.sub(r" ([.,;])(?=\s|$)", r"\1", text)


def is_prose(text: str, words: int) -> bool:
    """Whether a tidy paragraph is prose: sentences of words, without code, addresses or boilerplate."""
    parts = text.split()
    return (
        len(parts) >= words
        and SENTENCE.fullmatch(text) is not None
        and BOILERPLATE.search(text) is None
        and NEVER.search(text) is None
        and len(ODD.findall(text)) <= len(parts) // 40
        and len(LETTERS.findall(text)) >= (0.9 if len(parts) > 12 else 0.84) * len(text)
        and sum(not c.isascii() for c in text) <= 0.02 * len(text)
        and sum(CODE.search(part) is not None for part in parts) <= 0.06 * len(parts)
        and sum(part.isupper() and len(part) > 1 for part in parts) <= 0.2 * len(parts)
        and len(ENGLISH.findall(text)) >= len(parts) // 12
        and text.count('"') % 2 == 0
        and text.count("(") == text.count(")")
    )


class Blocks(HTMLParser):
    """The text of a page, cut at block elements, without code, tables and navigation."""

    SKIP = frozenset(SKIP_TAGS.split())
    BLOCK = frozenset(BLOCK_TAGS.split())
    SKIPPED = re.compile(r"sphinxsidebar|related|navheader|navfooter|footnotes|versionmodified|toc|literallayout", re.I)
    VOID = frozenset(VOID_TAGS.split())

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[str] = [""]
        self.skipping: str | None = None  # the element being skipped
        self.depth = 0
        self.ended = ""  # the element that ended just before

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.skipping:
            self.depth += tag == self.skipping
            return
        names = " ".join(value or "" for key, value in attrs if key in ("class", "id"))
        if tag in self.SKIP or (tag in ("div", "ul", "span") and self.SKIPPED.search(names)):
            self.skipping, self.depth = tag, 1
            if tag != "span":
                self.blocks.append("")
        elif tag in self.BLOCK:
            self.blocks.append("")
        elif tag == "br":
            self.blocks[-1] += " "
        elif tag == "sup":
            self.blocks[-1] += "^"
        elif tag == self.ended and tag in ("key", "gui"):
            self.blocks[-1] += "-" if tag == "key" else ", "

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.VOID:
            self.handle_starttag(tag, attrs)
        elif tag == "link" and not self.skipping:
            self.blocks[-1] += "<>"  # a title is missing here, so the paragraph is not kept

    def handle_endtag(self, tag: str) -> None:
        if self.skipping:
            self.depth -= tag == self.skipping
            if self.depth == 0:
                self.skipping = None
        elif tag in self.BLOCK:
            self.blocks.append("")
        self.ended = tag

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.blocks[-1] += data
        if data.strip():
            self.ended = ""


def load(path: Path) -> str:
    """A text file, packed or not."""
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", errors="replace")


def html(path: Path) -> Iterator[list[str]]:
    """HTML and Mallard pages: one document each."""
    parser = Blocks()
    parser.feed(load(path))
    yield parser.blocks


def wesnoth(path: Path) -> Iterator[list[str]]:
    """The translatable strings of a scenario that are told or said."""
    text = re.sub(r'"\s*\+\s*_?\s*"', "", load(path))
    found = re.findall(r'\b(?:message|story|description|text|note|hint|condition)\s*=\s*_\s*"((?:[^"]|"")*)"', text)
    blocks = []
    for string in found:
        string = re.sub(r"^[^\n^]{0,60}\^", "", string.replace('""', '"'))
        string = re.sub(r"<[^<>]*>", "", string)
        blocks += re.split(r"(?<=[.!?\"'”…])\s*\n\s*|\n\s*\n", string)
    yield blocks


def bible(path: Path) -> Iterator[list[str]]:
    """Chapters of the King James text. The data file is a header of 368 bytes before a stream that gzip unpacks."""
    packed = path.read_bytes()[368:]
    text = subprocess.run(["gzip", "-dc"], input=packed, capture_output=True, check=True).stdout.decode("latin-1")
    chapter, verses = "", []
    for line in text.splitlines():
        verse = re.match(r"(\w+:)\d+ (.*)", line)
        if verse is None:
            continue
        if verse[1] != chapter and verses:
            yield paragraphs(verses)
            verses = []
        chapter = verse[1]
        verses.append(re.sub(r"<<.*?>>|[\[\]{}<>]", "", verse[2]).strip())
    yield paragraphs(verses)


def paragraphs(verses: list[str]) -> list[str]:
    """Verses joined to paragraphs of whole sentences, of 500 characters or a little more."""
    made = [""]
    for verse in verses:
        made[-1] = f"{made[-1]} {verse}".strip()
        if len(made[-1]) > 500 and made[-1].endswith((".", "?", "!")):
            made.append("")
    return made


def jargon(path: Path) -> Iterator[list[str]]:
    """Entries of the Jargon File, about 4,000 characters at a time."""
    text = re.sub(r"[{}]", "", load(path))
    text = re.sub(r"\s*\((?:q\.v\.|see also [^()]*)\)", "", text)
    held: list[str] = []
    for entry in re.split(r"\n\s*:[^\n]*:[^\n]*\n", text):
        blocks = [
            re.sub(r"^\s*(\[[^\[\]]*\]\s*|\d+\.\s+|(?:n|adj|v|vt|vi|adv|interj)\.\s+)+", "", block)
            for block in entry.split("\n\n")
        ]
        held += [block for block in blocks if not re.match(r"\s*(See|Syn|Compare|Also|Cf)\b[^.]{0,80}\.?\s*$", block)]
        if sum(map(len, held)) > 4000:
            yield held
            held = []
    yield held


def crawl(path: Path) -> Iterator[list[str]]:
    """Descriptions of a game's monsters, gods and things: entries between lines of per cent signs."""
    text = re.sub(r"\{\{.*?\}\}", "", load(path), flags=re.S)
    text = re.sub(r"^(#.*|[wW]:\d+)$", "", text, flags=re.M)
    text = re.sub(r"^(VISUAL|SOUND|WARN|VISUAL WARN|PLAIN):", "", text, flags=re.M)
    text = re.sub(r" @to_foe@|,? @foe,?@|(?<=@)_(?=\w)", "", text)
    text = re.sub(r"@(the_monster|the_weapon|the_god)@", lambda m: m[1].replace("_", " "), text, flags=re.I)
    held: list[str] = []
    for entry in text.split("%%%%"):
        held += entry.strip().split("\n\n")[1:]
        if sum(map(len, held)) > 4000:
            yield held
            held = []
    yield held


def pod(path: Path) -> Iterator[list[str]]:
    """Perl's plain old documentation: ordinary paragraphs, their formatting codes replaced by what they hold."""
    blocks = []
    for block in re.split(r"\n\s*\n", load(path)):
        if not block.startswith(("=", " ", "\t")):
            for _ in range(4):
                block = re.sub(r"[XZ]<[^<>]*>", "", block)
                block = re.sub(r"L<(?:([^<>|]*)\||)[^<>]*>", lambda m: m[1] or m[0][2:-1], block)
                block = re.sub(r"[BCFIS](?:<<+ (.*?) >>+|<([^<>]*)>)", lambda m: m[1] or m[2] or "", block)
            blocks.append(block)
    yield blocks


READERS = {"html": html, "wesnoth": wesnoth, "bible": bible, "jargon": jargon, "crawl": crawl, "pod": pod}


def unpack(package: str, scratch: Path) -> tuple[Path, str]:
    """Download and unpack a package; its folder and version."""
    got = subprocess.run(["apt-get", "download", package], cwd=scratch, capture_output=True, text=True)
    files = sorted(scratch.glob(f"{package}_*.deb"))
    if got.returncode or not files:
        sys.exit(f"The package {package} could not be downloaded with apt-get: this needs Debian 12's package lists.")
    folder = scratch / package
    subprocess.run(["dpkg-deb", "-x", files[0], folder], check=True)
    version = subprocess.run(["dpkg-deb", "-f", files[0], "Version"], check=True, capture_output=True, text=True)
    files[0].unlink()
    return folder, version.stdout.strip()


def documents(source: Source, files: list[Path], seen: set[str]) -> list[str]:
    """The prose of files, a paragraph never twice."""
    texts: list[str] = []
    for path in files:
        for blocks in READERS[source.reader](path):
            kept = []
            for block in map(tidy, blocks):
                if block not in seen and is_prose(block, source.words):
                    seen.add(block)
                    kept.append(block)
            if not kept:
                continue
            if texts and len(texts[-1]) < SHORT:
                texts[-1] += "\n\n" + "\n\n".join(kept)
            else:
                texts.append("\n\n".join(kept))
    if len(texts) > 1 and len(texts[-1]) < SHORT:
        texts[-2:] = ["\n\n".join(texts[-2:])]
    return [text for text in texts if len(text) >= SHORT]


def spread(texts: list[str], room: int) -> list[str]:
    """Documents spread evenly over texts that together take about the room."""
    total = sum(map(len, texts))
    if total <= room:
        return texts
    kept, taken, passed = [], 0, 0
    for text in texts:
        passed += len(text)
        if taken + len(text) <= passed * room / total:
            kept.append(text)
            taken += len(text)
    return kept


def take(source: Source, folder: Path, seen: set[str]) -> list[str]:
    """The documents of a package, group by group until its cap is reached."""
    texts: list[str] = []
    for group in source.groups:
        files = sorted(path for path in folder.glob(group) if path.is_file() and not path.is_symlink())
        if source.leave:
            files = [path for path in files if not re.search(source.leave, path.name)]
        found = documents(source, files, seen)
        texts += found if source.cap is None else spread(found, max(0, source.cap - sum(map(len, texts))))
    return texts


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("Usage: python corpus.py OUT_FOLDER")
    for program in ("apt-get", "dpkg-deb", "gzip"):
        if shutil.which(program) is None:
            sys.exit(f"{program} was not found: the corpus is made from Debian packages, so run this on Debian 12.")
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    table = []
    for source in SOURCES:
        with tempfile.TemporaryDirectory() as scratch:
            folder, version = unpack(source.package, Path(scratch))
            texts = take(source, folder, seen)
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        (out / f"{source.package}.jsonl").write_text("".join(lines), encoding="utf-8")
        row = {
            "package": source.package,
            "version": version,
            "licence": source.licence,
            "documents": len(texts),
            "characters": sum(map(len, texts)),
        }
        table.append(row)
        print(
            f"{row['package']:22} {version:28} {len(texts):5} documents {row['characters']:10,} characters", flush=True
        )
    (out / "sources.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(row['characters'] for row in table):,} characters in all")


if __name__ == "__main__":
    main()
