"""The site that `make docs` built, in a browser. Without a site/, or without Chromium, there is nothing to look at."""

import pytest
from chromium import EXECUTABLE, Chromium
from documented import ROOT

SITE = ROOT / 'site'
PAGES = [
    'docs/index',
    'docs/troubleshooting',
    'docs/reference/ops',
    'docs/reference/models',
    'docs/model_zoo',
    'README',
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SITE / 'index.html').exists(), reason='make docs has not run'),
    pytest.mark.skipif(EXECUTABLE is None, reason='needs Chromium or Chrome on the PATH'),
]


@pytest.fixture(scope='module', params=[(1300, 1000), (390, 844)], ids=['desktop', 'telephone'])
def browser(request, tmp_path_factory):
    browser = Chromium(tmp_path_factory.mktemp('profile'), size=request.param)
    width, height = request.param
    browser.send('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)
    yield browser
    browser.close()


def open_page(browser, name):
    browser.events.clear()
    browser.open((SITE / f'{name}.html').as_uri())


@pytest.mark.parametrize('page', PAGES)
def test_page(page, browser):
    """Nothing fails to load, no picture is broken, and the page is not wider than the window."""
    open_page(browser, page)
    assert [event for event in browser.events if event.get('method') == 'Network.loadingFailed'] == []
    assert browser.evaluate('[...document.images].filter(i => i.complete && !i.naturalWidth).length') == 0
    assert browser.evaluate('document.documentElement.scrollWidth <= window.innerWidth')
    requested = [
        e['params']['request']['url'] for e in browser.events if e.get('method') == 'Network.requestWillBeSent'
    ]
    assert requested and all(url.startswith(('file:', 'data:')) for url in requested), 'it asks other machines'


def test_reference_has_shapes(browser):
    open_page(browser, 'docs/reference/ops')
    text = browser.evaluate("document.getElementById('mmdet_ddetr.ops.ms_deform_attn').parentElement.innerText")
    for shape in ('[B, S, M, D]', '[B, Q, M, L, K, 2]', '[B, Q, M, L, K]', '[B, Q, M*D]'):
        assert shape in text


def test_home_of_the_site(browser):
    """The root leads to the documentation."""
    open_page(browser, 'index')
    for _ in range(50):
        if browser.evaluate('location.pathname').endswith('docs/index.html'):
            break
    assert browser.evaluate('location.pathname').endswith('docs/index.html')
