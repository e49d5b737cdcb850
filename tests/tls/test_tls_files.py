"""The control plane's certificate files: what is refused at the start, and what a change does."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from pointsman.app.certificate import certificates, validity
from pointsman.app.tls import Certificates, TlsError, TlsFiles, read_material
from pointsman.app.trial_certificates import CertificateError, TrialCa
from pointsman.core.clock import ManualClock, SystemClock

DAY_S = 86_400


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> TrialCa:
    made = TrialCa(tmp_path_factory.mktemp("ca"), days=10)
    made.server()
    made.server(name="another")
    return made


@pytest.fixture
def files(ca: TrialCa, tmp_path: Path) -> TlsFiles:
    found = TlsFiles(certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key", client_ca=tmp_path / "ca.crt")
    use(files=found, ca=ca)
    return found


def use(files: TlsFiles, ca: TrialCa, name: str = "server") -> None:
    files.certificate.write_bytes((ca.folder / f"{name}.pem").read_bytes())
    files.key.write_bytes((ca.folder / f"{name}.key").read_bytes())
    files.client_ca.write_bytes(ca.certificate.read_bytes())


def openssl(*words: str | Path) -> str:
    return subprocess.run(["openssl", *words], capture_output=True, text=True, check=True).stdout


def test_the_end_of_a_certificate_is_what_openssl_says(ca: TrialCa) -> None:
    pem = ca.folder / "server.pem"
    (der,) = certificates(pem.read_bytes())
    dates = dict(line.split("=") for line in openssl("x509", "-in", pem, "-noout", "-dates").splitlines())
    expected = [
        datetime.strptime(dates[key], "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC).timestamp()
        for key in ("notBefore", "notAfter")
    ]
    assert list(validity(der)) == expected
    assert expected[1] - expected[0] == 10 * DAY_S


def test_far_dates_are_read(tmp_path: Path) -> None:
    """From 2050 on certificates hold four-digit years."""
    old = TrialCa(tmp_path, days=365 * 60)
    (der,) = certificates(old.certificate.read_bytes())
    begin, end = validity(der)
    assert end - begin == 365 * 60 * DAY_S


@given(cut=st.integers(0, 600), change=st.tuples(st.integers(0, 600), st.integers(0, 255)))
def test_broken_certificates_are_value_errors(ca: TrialCa, cut: int, change: tuple[int, int]) -> None:
    (der,) = certificates((ca.folder / "server.pem").read_bytes())
    broken = bytearray(der[: len(der) - cut])
    if change[0] < len(broken):
        broken[change[0]] = change[1]
    try:
        begin, end = validity(bytes(broken))
    except ValueError:
        return
    assert isinstance(begin, float) and isinstance(end, float)


def _encrypt(files: TlsFiles, ca: TrialCa) -> None:
    openssl("pkey", "-in", ca.folder / "server.key", "-aes256", "-passout", "pass:secret", "-out", files.key)


BROKEN: dict[str, tuple[Callable[[TlsFiles, TrialCa], object], str]] = {
    "no certificate": (lambda files, _: files.certificate.unlink(), "--tls-cert .*No such file"),
    "no key": (lambda files, _: files.key.unlink(), "--tls-key .*No such file"),
    "no CA": (lambda files, _: files.client_ca.unlink(), "--tls-client-ca .*No such file"),
    "no PEM": (lambda files, _: files.certificate.write_text("nonsense"), "--tls-cert .*"),
    "another's key": (
        lambda files, ca: files.key.write_bytes((ca.folder / "another.key").read_bytes()),
        "the key belongs to another certificate",
    ),
    "key with a passphrase": (_encrypt, "--tls-key .*"),
    "empty CA": (lambda files, _: files.client_ca.write_text(""), "--tls-client-ca .*"),
    "CA file with a key": (
        lambda files, ca: files.client_ca.write_bytes((ca.folder / "server.key").read_bytes()),
        "--tls-client-ca .*",
    ),
    "CA that is none": (
        lambda files, ca: files.client_ca.write_bytes((ca.folder / "server.pem").read_bytes()),
        "holds no CA certificate",
    ),
    "CA file that is no text": (lambda files, _: files.client_ca.write_bytes(b"\xff\x00"), "--tls-client-ca .*"),
}


@pytest.mark.parametrize("fault", BROKEN)
async def test_bad_files_are_refused_and_replace_nothing(files: TlsFiles, ca: TrialCa, fault: str) -> None:
    registry = CollectorRegistry()
    held = Certificates(files, registry, SystemClock())
    good = held.status()
    breaks, said = BROKEN[fault]
    breaks(files, ca)
    with pytest.raises(TlsError, match=said):
        read_material(files, SystemClock().wall_s())

    await held.look()
    assert held.status() == good, "it may be a look in between of two writes"
    await held.look()
    status = held.status()
    assert status["accepted"] is False
    assert status["expires_at_s"] == good["expires_at_s"]
    assert registry.get_sample_value("pointsman_tls_reload_success") == 0
    assert registry.get_sample_value("pointsman_tls_reloads_total", {"result": "refused"}) == 1
    await held.look()
    assert registry.get_sample_value("pointsman_tls_reloads_total", {"result": "refused"}) == 1, "told once"

    use(files, ca)
    await held.look()
    assert held.status() == good
    assert registry.get_sample_value("pointsman_tls_reload_success") == 1


@pytest.mark.parametrize("days", [-1, 11], ids=["not yet valid", "expired"])
def test_a_certificate_out_of_its_time_is_refused(files: TlsFiles, days: int) -> None:
    with pytest.raises(TlsError, match="expired or not yet valid"):
        read_material(files, SystemClock().wall_s() + days * DAY_S)


def test_an_old_ca_may_stay_beside_a_new_one(files: TlsFiles, ca: TrialCa, tmp_path: Path) -> None:
    longer = TrialCa(tmp_path / "longer", days=20)
    pair = longer.server()
    files.certificate.write_bytes(pair[0].read_bytes())
    files.key.write_bytes(pair[1].read_bytes())
    files.client_ca.write_bytes(ca.certificate.read_bytes() + longer.certificate.read_bytes())
    now_s = SystemClock().wall_s()
    soon, later = (read_material(files, now_s + days * DAY_S).expires_s["client_ca"] for days in (0, 11))
    assert later - soon == pytest.approx(10 * DAY_S, abs=60)


async def test_new_files_are_taken_and_shown(files: TlsFiles, ca: TrialCa) -> None:
    registry, clock = CollectorRegistry(), ManualClock(wall_s=SystemClock().wall_s())
    held = Certificates(files, registry, clock)
    admin = held.admin(open_to_others=True)
    assert admin is not None
    assert held.admin(open_to_others=False) is None, "on loopback, and nobody has certificates"
    context = admin.listening
    served = context.cert_store_stats()
    clock.advance(5)
    await held.look()
    assert held.status()["loaded_at_s"] == clock.wall_s() - 5, "nothing was new"
    longer = TrialCa(files.certificate.parent / "longer", days=20)
    longer.server()
    use(files, longer)
    await held.look()
    status = held.status()
    assert (status["accepted"], status["loaded_at_s"]) == (True, clock.wall_s())
    expiry = registry.get_sample_value("pointsman_tls_certificate_expiry_timestamp_seconds", {"file": "server"})
    assert expiry == status["expires_at_s"]["server"] == pytest.approx(clock.wall_s() + 20 * DAY_S, abs=60)
    assert registry.get_sample_value("pointsman_tls_reloads_total", {"result": "ok"}) == 1
    assert held.admin(open_to_others=True) is admin, "the listening server has this one"
    assert served == context.cert_store_stats()
    assert isinstance(context, ssl.SSLContext)


def test_trial_certificates_are_for_odd_names_not_made(tmp_path: Path) -> None:
    ca = TrialCa(tmp_path)
    with pytest.raises(CertificateError, match="no name in a certificate"):
        ca.gateway(["default/main\nsubjectAltName = DNS:evil"], trust_domain="test")


def test_a_ca_that_is_there_is_kept(tmp_path: Path) -> None:
    first = TrialCa(tmp_path).certificate.read_bytes()
    assert TrialCa(tmp_path).certificate.read_bytes() == first
