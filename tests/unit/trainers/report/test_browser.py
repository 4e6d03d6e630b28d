"""The page in a real browser: nothing leaves it, nothing complains, it fits a phone and a desk."""

import json

import pytest

from tests.browsers import chromium
from trainers.report.page import write_report

pytestmark = pytest.mark.browser
EVIL = "<script>console.error(1)</script><img src=http://127.0.0.1/x.png>" + "w" * 5000


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - where it is installed

    with sync_playwright() as playwright:
        # Only our own pages are opened; in a container there is no sandbox to be had.
        opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def pages(text_run, control_run):
    row = {"step": 2, "prompt": EVIL, "completion": EVIL, "reward": 1.0, "advantage": 9.0}
    with (text_run / "samples.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    return [
        write_report([text_run]),
        write_report([control_run]),
        write_report([text_run, control_run]),
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_every_page_reads_well(width, scheme, browser, pages):
    for path in pages:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        said, asked = [], []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(path.as_uri())
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        charts = page.evaluate("[...document.querySelectorAll('svg')].map(x => x.clientWidth)")
        assert charts
        assert min(charts) >= 280
        small = """[...document.querySelectorAll('p, li, td, dd, pre, svg text')]
            .filter(x => x.getBoundingClientRect().height && x.textContent.trim())
            .map(x => parseFloat(getComputedStyle(x).fontSize))"""
        assert min(page.evaluate(small)) >= 9
        contrast = """(() => {
            const light = name => {
                const probe = document.createElement('i');
                probe.style.color = `var(${name})`;
                document.body.append(probe);
                const [r, g, b] = getComputedStyle(probe).color.match(/[0-9.]+/g).map(Number);
                const linear = x => (x /= 255) <= 0.04045
                    ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
                return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
            };
            const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            return ['--ink', '--muted', '--good', '--bad', '--warn', '--accent']
                .map(name => ratio(light(name), light('--paper')));
        })()"""
        assert min(page.evaluate(contrast)) >= 4.5  # WCAG 2.2, 1.4.3
        page.close()
