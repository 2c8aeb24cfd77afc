"""What is generated: texts that people, files and addresses may hold, from plain ones to those made to break a parser."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FIXED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
"""The same cases on every run, so that CI tells of a change and never of luck."""

NASTY = (
    *("", " ", "\0", "\n", "\r\n", "\x1b[31m", "\x7f", "\ufeff", "\u2028", "\u202e", "\ud83d", "\U000e0001", "e\u0301"),
    *(
        "..",
        "../..",
        "~",
        "~root",
        "~no-such-user/x",
        "/",
        "//",
        "\\",
        "C:\\",
        "%00",
        "%2e%2e%2f",
        "file://",
        "hf://a/b",
    ),
    *("a/b", "org/name@main", "org/name@", "demo", "smollm2", "sampler", "self:", "self:1e9", "self:1000", "hub:x:y:z"),
    *("id:", "id:0", "id:-1", "id:٣", "id:1_000", "id:1e3", "id:99999999999999999999", "id:0x10", "id: 7"),
    *(
        "<script>alert(1)</script>",
        "'; DROP TABLE x; --",
        "{{ 7*7 }}",
        "${x}",
        "$(touch x)",
        "`x`",
        "a:b:c",
        ":",
        ",",
        "|",
    ),
    *(
        "nan",
        "inf",
        "-inf",
        "1e400",
        "-0",
        "1e-400",
        "0x1p3",
        "1,2,,3",
        "9" * 5000,
        "x" * 5000,
        "½",
        "²",
        "𝟛",
        "☃",
        "🦉",
    ),
    *(
        "שלום עולם",
        "مرحبا",
        "日本語",
        "x.gguf",
        "x.csv:col",
        "x.parquet:",
        ".bin",
        "step{0,1}",
        "o/n@step{0,1,2}",
        "o/n@{}",
    ),
)

nasty = st.sampled_from(NASTY)
texts = nasty | st.text(max_size=60) | st.lists(nasty | st.text(max_size=8), max_size=5).map("".join)
"""Any text at all, and often one that a parser may stumble over."""

numbers = (
    st.floats(allow_nan=True, allow_infinity=True)
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, -0.0, 1, 1e-6, 1e6, 5e-324, 1e308, 2**31, 2**32, 2**63, 0.5, 0.999999])
)
