"""The live page in a real browser, in front of a real control plane with traffic. Needs Chromium: `make test-page`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from pointsman.app.control_plane import ControlPlane
from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.app.tls import TlsFiles
from pointsman.app.trial_certificates import TrialCa
from support.browser import CHROMIUM, Page, PageError, browser_page
from support.fleet import MODEL, Layout, Loopback, Manifests, running_fleet
from support.load import Load, chat_body
from support.waiting import eventually

pytestmark = [pytest.mark.page, pytest.mark.timeout(300)]

HOSTILE = "<img src='//evil.example/x' onerror='window.hurt = 1'><script>window.hurt = 2</script>"
TOKEN = "a-token-made-by-the-test-0123456789"


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    assert CHROMIUM, "these tests need Chromium (Debian: apt-get install chromium)"
    async with browser_page() as found:
        yield found


def outside(page: Page, admin: str) -> set[str]:
    """Addresses that the page asked which are not the admin server's."""
    here = urlsplit(admin).netloc
    return {url for url in page.asked if urlsplit(url).netloc != here and not url.startswith(("about:", "data:"))}


async def test_the_page_shows_the_fleet_and_follows_it(page: Page, tmp_path: Path) -> None:
    """Endpoints and shares; one dies, weights change, somebody means harm; all the time it asks nobody else."""
    layout = Layout(stable={"us-east": 2, "eu-west": 1}, canary={"us-east": 1}, canary_weight=50, stable_weight=50)
    async with running_fleet(tmp_path, layout) as fleet, Load(fleet.url, workers=3) as load:
        await load.progressed(30)
        await page.size(1280, 900)
        await page.open(fleet.admin)
        for name in ("Site us-east", "Site eu-west", "stable-us-east-1", "stable-eu-west-0", "canary-us-east-0"):
            await page.shows(name, "#fleet")
        await page.shows("healthy", "#health")
        await page.shows("4 of 4 endpoints ready", "#summary")
        await page.shows("1 proxy", "#fleet")
        await page.shows("50 % of chat/1", "#fleet")
        await page.shows("%", "#shares .legend")
        assert await page.script("(({scrollWidth, clientWidth}) => scrollWidth - clientWidth)"
                                 "(document.querySelector('#fleet .scroll'))") == 0, "the table fits"  # fmt: skip
        assert await page.script("document.querySelectorAll('#shares svg rect').length") >= 2

        by = "document.querySelector('#by')"
        await page.script(f"{by}.value = 'sites', {by}.dispatchEvent(new Event('change'))")
        await page.shows("eu-west", "#shares .legend")

        await fleet.set_faults("stable-eu-west-0", {"refuse": True})
        await page.shows("degraded", "#health")
        await page.shows("stable-eu-west-0 (", "#reasons")  # silent, or drained by failover
        await page.shows("3 of 4 endpoints ready", "#summary")
        await fleet.set_faults("stable-eu-west-0", None)
        await page.shows("4 of 4 endpoints ready", "#summary")

        body = {"weights": {"canary": 10, "stable": 90}, "reason": HOSTILE, "actor": HOSTILE}
        async with fleet.session.put(f"{fleet.admin}/api/v1/weights/chat/1", json=body) as response:
            assert response.status == 200
        await page.shows("10 % of chat/1", "#fleet")
        await page.shows("weights.set", "#timeline")
        await page.shows(HOSTILE, "#timeline")  # as text

        hostile = chat_body("hello", model=MODEL) | {"model": HOSTILE}
        async with fleet.session.post(f"{fleet.url}/v1/chat/completions", json=hostile) as response:
            request_id = response.headers["x-request-id"]
        await page.script("document.querySelector('#request').focus()")
        await page.type(request_id)
        await page.press("Enter")
        await page.shows(HOSTILE, "#explained")
        await page.script("document.querySelector('#hold').click()")
        await page.script("document.querySelector('#picks button').click()")
        await page.shows(f"Model\n{MODEL}\n", "#explained dl")
        assert await page.script("window.hurt ?? null") is None
        assert await page.script("document.querySelectorAll('img, script:not([src])').length") == 0

        assert page.complaints == []
        await fleet.kill_control_plane()
        await page.shows("No answer from the control plane", "#link")
        # Also a request may be under way then: reset, or without an answer.
        assert [one for one in page.complaints if "net::ERR_" not in one] == []
        assert outside(page, fleet.admin) == set()


async def test_the_policy_keeps_everything_else_out(page: Page, tmp_path: Path) -> None:
    """What a hostile text could try if it became HTML: inline scripts, eval, other hosts. And it fits small screens."""
    async with running_fleet(tmp_path, Layout(stable={"us-east": 1})) as fleet:
        async with fleet.session.get(fleet.admin) as response:
            policy = response.headers["content-security-policy"]
        assert "unsafe" not in policy and "*" not in policy and "default-src 'none'" in policy
        await page.open(fleet.admin)
        await page.shows("stable-us-east-0", "#fleet")
        assert page.complaints == []
        for width in (360, 800, 1600):
            await page.size(width, 900)
            assert await page.script("document.documentElement.scrollWidth <= window.innerWidth"), width
        with pytest.raises(PageError, match="TrustedHTML"):
            await page.script("document.body.innerHTML = '<b>x</b>'")
        await page.script(
            "(style => { style.textContent = 'h1 {color: rgb(1, 2, 3)}'; document.head.append(style); })"
            "(document.createElement('style'))"
        )
        assert await page.script("getComputedStyle(document.querySelector('h1')).color") != "rgb(1, 2, 3)"
        assert (
            await page.script("fetch('http://127.0.0.2:9/').then(() => 'got through', () => 'kept out')") == "kept out"
        )
        await eventually(lambda: any("Content Security Policy" in one for one in page.complaints), what="it complains")
        # Somebody else's page may not frame it, and may not change anything either.
        async with fleet.session.put(
            f"{fleet.admin}/api/v1/weights/chat/1",
            json={"weights": {"stable": 1, "canary": 1}},
            headers={"origin": "http://evil.example"},
        ) as response:
            assert response.status == 403


async def test_it_works_with_the_keyboard_and_has_names(page: Page, tmp_path: Path) -> None:
    async with running_fleet(tmp_path, Layout(stable={"us-east": 1})) as fleet:
        await page.open(fleet.admin)
        await page.shows("stable-us-east-0", "#fleet")
        nameless = """[...document.querySelectorAll('button, select, input, [role=img], [role=region]')]
            .filter((node) => !(node.innerText || node.getAttribute('aria-label') || node.labels?.length)).length"""
        assert await page.script(nameless) == 0
        await page.press("Tab")
        assert await page.script("document.activeElement.className") == "skip"
        await page.script("document.querySelector('button.fold').focus()")
        assert await page.script("document.activeElement.getAttribute('aria-expanded')") == "true"
        await page.press("Enter")

        async def folded() -> bool:
            """The row is folded, and the focus stays on its button although the table was drawn anew."""
            return await page.script("document.activeElement.getAttribute('aria-expanded')") == "false"

        await eventually(folded, what="the site is folded")
        assert "stable-us-east-0" not in await page.text("#fleet")


async def test_off_loopback_it_asks_for_the_token(page: Page, tmp_path: Path) -> None:
    """With a token the page is served and empty; the token is asked for, kept in memory, and gone with the tab."""
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    layout = Layout(stable={"us-east": 1})
    async with running_fleet(tmp_path, layout, extra=["--admin-token-file", str(token_file)]) as fleet:
        await page.open(fleet.admin)
        await page.shows("asks for its token", "#login")
        assert "stable-us-east-0" not in await page.text()
        await page.script("document.querySelector('#token').focus()")
        await page.type("not the token at all")
        await page.press("Enter")
        await page.shows("That is not the token", "#refused")
        await page.type(TOKEN)
        await page.press("Enter")
        await page.shows("stable-us-east-0", "#fleet")
        kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
        assert TOKEN not in await page.script(kept)
        await page.open(fleet.admin)
        await page.shows("asks for its token", "#login")
        async with aiohttp.ClientSession() as session, session.get(f"{fleet.admin}/api/v1/tree") as response:
            assert response.status == 401


async def test_where_only_certificates_count_it_says_so_and_asks_for_no_token(page: Page, tmp_path: Path) -> None:
    ca = TrialCa(tmp_path / "ca")
    ca.server(["127.0.0.1"])
    Manifests(tmp_path / "config", Loopback()).write(Layout(stable={"us-east": 1}))
    files = TlsFiles(
        certificate=ca.folder / "server.pem",
        key=ca.folder / "server.key",
        client_ca=ca.certificate,
        admin_client_ca=ca.certificate,
    )
    options = ControlPlaneOptions(
        config=tmp_path / "config", state=tmp_path / "state", grpc_port=0, admin_port=0, tls=files
    )
    async with ControlPlane(options) as plane:
        await page.call("Security.setIgnoreCertificateErrors", ignore=True)
        await page.open(plane.admin_url)
        await page.shows("Not let in: this needs a client certificate that names an operator", "#link")
        assert await page.text("#login") == ""
        assert await page.text("#desk") == ""
