"""Regular expressions: our verdict against that of a real Envoy."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest

from pointsman.app.envoy import find_envoy
from pointsman.core.config.regex import MAX_PROGRAM, re2_complaint

GOOD = [
    r"a.*",
    r"(?i)abc",
    r"a(?i)b",
    r"(?i:gpt|llama)-[0-9]{1,3}",
    r"(?P<name>a)(?<other>b)",
    r"\z\A\b\B",
    r"\pL\PN\p{Lu}\p{^Latin}",
    r"[[:alpha:][:^digit:]_-]",
    r"[]a][^]a][a-z-9][\d-z]",
    r"\Qa.b*\E+\Qend",
    r"\x41\x{ff}\0\12\377",
    r"(?s-m:a)(?U)b",
    r"a*?b+?c??d{2}?e{2,}f{0,3}g{h",
    r"|a||()",
    r"v[0-9]+(\.[0-9]+)*",
]
BAD = {
    r"(?=a)": "RE2 has no (?= (look-around, atomic and conditional groups)",
    r"(?<!a)b": "RE2 has no (?< (look-around, atomic and conditional groups)",
    r"(?>a)": "RE2 has no (?> (look-around, atomic and conditional groups)",
    r"(a)\1": "RE2 has no back-references (\\1)",
    r"\8": "RE2 has no back-references (\\8)",
    r"a++": "a repetition of a repetition: ++",
    r"a**": "a repetition of a repetition: **",
    r"a{2}{3}": "a repetition of a repetition: }{",
    r"*a": "nothing to repeat before *",
    r"(?i)*": "nothing to repeat before *",
    r"a|?": "nothing to repeat before ?",
    r"a{1001}": "bad repetition {1001}",
    r"a{3,2}": "bad repetition {3,2}",
    r"((a{11}){10}){10}": "nested repetitions make more than 1000",
    r"(a": "missing )",
    r"a)": "unexpected )",
    r"[a": "missing ]",
    r"[z-a]": "bad range in a class",
    r"[a-\d]": "bad range in a class",
    r"[[:foo:]]": "unknown class after [:",
    r"[\b]": "\\b can't stand in a class",
    r"\Z": "RE2 has no \\Z",
    r"\e": "RE2 has no \\e",
    r"\pX": "unknown Unicode class after \\p",
    r"\x4": "bad \\x: expected two hexadecimal digits",
    r"\x{100}": "\\x{100} is more than a byte",
    r"\400": "\\400 is more than a byte",
    "a\\": "a \\ at the end",
    r"[a-z]{1,99}": f"too large: about 403 instructions, Envoy takes {MAX_PROGRAM}",
}
PIECES = [
    *["abc", "x/y", "a", "k", "-", "]", "[", "^", "[^", "(", "(?:", "(?i:", "(?P<n>", ")", "|", "*", "+", "?", "{2}"],
    *["{1,3}", "{0,4}", "{5,}", r"\d", r"\W", r"\pL", r"\PN", "[a-z]", "[[:alpha:]]", r"\x41", r"\x{ff}", ".", "$"],
    *[r"\b", "(?i)", "(?s)", r"\Q", r"\E", r"\.", r"\C", r"\z", "{", "}", ",", "1", r"\0", r"\17", r"[^\s-z]", " "],
]


def accepted_by_envoy(patterns: list[str], folder: Path) -> bool:
    """Does Envoy take a route table with a route for each expression?"""
    hcm = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
    routes = [
        {
            "match": {"prefix": "/", "headers": [{"name": "x", "string_match": {"safe_regex": {"regex": pattern}}}]},
            "direct_response": {"status": 200},
        }
        for pattern in patterns
    ]
    manager = {
        "@type": hcm,
        "stat_prefix": "x",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]},
    }
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }
    path = folder / "envoy.json"
    path.write_text(json.dumps({"static_resources": {"listeners": [listener]}}))
    command = [find_envoy(), "--mode", "validate", "-l", "off", "-c", str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("pattern", GOOD)
def test_good_expressions_have_no_complaint(pattern: str) -> None:
    assert re2_complaint(pattern) == ""


@pytest.mark.parametrize(("pattern", "complaint"), BAD.items())
def test_bad_expressions_have_one(pattern: str, complaint: str) -> None:
    assert re2_complaint(pattern) == complaint


@pytest.mark.e2e
def test_envoy_takes_the_good_ones(tmp_path: Path) -> None:
    assert accepted_by_envoy(GOOD, tmp_path)


@pytest.mark.e2e
@pytest.mark.parametrize("pattern", BAD)
def test_envoy_refuses_the_bad_ones(pattern: str, tmp_path: Path) -> None:
    assert not accepted_by_envoy([pattern], tmp_path)


@pytest.mark.e2e
def test_envoy_takes_whatever_we_take(tmp_path: Path) -> None:
    """Random expressions: not one that we let through may cost a gateway its route table."""
    source = random.Random(20260501)
    taken: list[str] = []
    while len(taken) < 800:
        pattern = "".join(source.choice(PIECES) for _ in range(source.randint(1, 24)))
        if not re2_complaint(pattern):
            taken.append(pattern)
    assert accepted_by_envoy(taken, tmp_path)
