"""The documentation as a site: built without a network and without warnings, and visited by a browser."""

import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.thread_unsafe]

ROOT = Path(__file__).parents[1]
BROWSER = [
    *["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"],
    *[
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ],
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the site, built by the README's command from a copy of the sources."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "examples", "benchmarks"):
        ignored = shutil.ignore_patterns("generated", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for path in ROOT.glob("*.md"):
        shutil.copy(path, folder)
    command = re.search(r"python -m (sphinx .*)$", (ROOT / "README.md").read_text("utf-8"), re.M)[1]
    result = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-5000:]
    return folder / command.split()[-1]


@pytest.fixture(scope="module")
def address(site):
    """Return the address at which the site is served."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    """Return Chromium, without a screen."""
    # Of the extra "integration".
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    assert path, "install chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=BROWSER)
        yield chromium
        chromium.close()


def pages_of(site):
    """Return the addresses of all pages, below the site's own."""
    return sorted(
        path.relative_to(site).as_posix() for path in site.rglob("*.html") if "_static" not in path.parts
    )


def test_every_page_without_an_error(site, address, browser):
    """No error in the console, nothing that is missing, nothing from elsewhere, formulas set."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    troubles, where = [], ""
    page.on("console", lambda m: m.type in ("error", "warning") and troubles.append((where, m.text)))
    page.on("pageerror", lambda error: troubles.append((where, str(error))))
    # What is under way when the next page is asked for is aborted.
    page.on(
        "requestfailed",
        lambda r: r.failure == "net::ERR_ABORTED" or troubles.append((where, f"{r.failure}: {r.url}")),
    )
    page.on("response", lambda r: r.status >= 400 and troubles.append((where, f"{r.status}: {r.url}")))
    page.on(
        "request", lambda r: r.url.startswith((address, "data:", "blob:")) or troubles.append((where, r.url))
    )
    names = pages_of(site)
    assert len(names) > 100
    n_formulas = 0
    for where in names:
        page.goto(address + where, wait_until="load")
        formulas = page.locator(".math").count()
        if formulas:
            page.wait_for_function("document.querySelectorAll('mjx-container').length > 0")
            assert page.locator("mjx-merror, .MathJax_Error").count() == 0, where
        n_formulas += formulas
        if "genindex" not in where and "search" not in where:
            assert page.locator("h1").count() >= 1, where
            assert page.evaluate(
                "[...document.querySelectorAll('h1')].every(h => h.scrollWidth <= h.clientWidth)"
            )
        # Nothing sticks out but what scrolls by itself.
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), where
    assert not troubles
    assert n_formulas > 50


def test_the_search_finds_a_function(address, browser):
    page = browser.new_page()
    page.goto(f"{address}search.html?q=distillation_loss")
    page.wait_for_selector("#search-results li a")
    assert "distillation_loss" in page.locator("#search-results").inner_text()


@pytest.mark.parametrize(
    ("name", "selector"),
    [
        ("index.html", "table"),
        ("numerics.html", "figure img, img.plot-directive"),
        ("generated/reference/cyce.functional.cross_entropy.html", "mjx-container"),
    ],
)
def test_pictures_of_pages(address, browser, tmp_path, name, selector):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(address + name, wait_until="load")
    page.wait_for_selector(selector)
    assert page.locator(selector).first.bounding_box()["height"] > 5
    page.screenshot(path=tmp_path / "page.png")
    picture = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    assert picture.shape[:2] == (900, 1200)
    # Text on a page, neither empty nor covered.
    dark = (picture.mean(axis=2) < 0.5).mean()
    assert 0.005 < dark < 0.4
    assert np.ptp(picture) > 0.8


def test_links_within_the_site_lead_somewhere(site):
    for name in pages_of(site):
        text = (site / name).read_text("utf-8")
        for link in re.findall(r'<a[^>]*\shref="([^"#?]+)', text):
            if not re.match(r"[a-z]+:", link):
                assert (site / name).parent.joinpath(link).resolve().exists(), (name, link)
