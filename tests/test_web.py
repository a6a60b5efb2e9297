"""The web page: what it answers, what it refuses, and what a browser makes of it."""

import contextlib
import http.client
import io
import json
import os
import re
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mmdet_ddetr import get_config
from mmdet_ddetr.apis import DDetrInferencer
from mmdet_ddetr.apis.complexity import build_detector
from mmdet_ddetr.datasets import DataError
from mmdet_ddetr.explain import explain
from mmdet_ddetr.testing import randomise, shrink

uvicorn = pytest.importorskip('uvicorn')
pytest.importorskip('starlette')

from mmdet_ddetr.web import Limits, Viewer, make_app  # noqa: E402

ROOT = Path(__file__).parents[1]
EVIL = '<img src=x onerror=alert(1)>&"\''
BINARY = {'Content-Type': 'application/octet-stream'}


@contextlib.contextmanager
def serving(view, title='title', threshold=0.3, hosts=('127.0.0.1',), **limits):
    """The port of a server in a thread."""
    app = make_app(view, title, threshold, Limits(**limits), hosts)
    listening = socket.create_server(('127.0.0.1', 0))
    config = uvicorn.Config(app, log_level='critical', lifespan='off', ws='none', server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def ask(port, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def post(port, data, headers=BINARY):
    status, _, text = ask(port, 'POST', '/detect', data, headers)
    return status, json.loads(text)


# --- the server ------------------------------------------------------------------------------------------------------


def echo(data):
    return dict(length=len(data))


def test_pages_and_their_headers():
    with serving(echo, title=EVIL) as port:
        for path, kind in (('/', 'text/html'), ('/page.css', 'text/css'), ('/page.js', 'text/javascript')):
            status, headers, text = ask(port, 'GET', path)
            assert status == 200 and headers['content-type'].startswith(kind)
            policy = headers['content-security-policy']
            assert "default-src 'none'" in policy and 'unsafe' not in policy and 'http' not in policy
            assert headers['x-content-type-options'] == 'nosniff' and 'server' not in headers
            assert '//' not in text.replace('http://www.w3.org/2000/svg', '').replace(
                '// ', ''
            )  # nothing from elsewhere
        page = ask(port, 'GET', '/')[2]
        assert '<img' not in page and '&lt;img src=x onerror=alert(1)&gt;' in page and '{{' not in page
        assert ask(port, 'GET', '/../app.py')[0] == ask(port, 'GET', '/app.py')[0] == 404
        assert ask(port, 'GET', '/detect')[0] == 405


def test_uploads_are_limited():
    with serving(echo, bytes=2**20) as port:
        assert post(port, bytes(2**20)) == (200, dict(length=2**20))
        assert post(port, bytes(2**20 + 1)) == (413, dict(error='The file has more than 1 MiB.'))
        chunks = (bytes(2**17) for _ in range(9))  # of no length told
        assert post(port, chunks, BINARY)[0] == 413
        assert post(port, b'x', {'Content-Type': 'text/plain'})[0] == 415  # what a form of another site can send
        assert post(port, b'x', BINARY | {'Content-Type': 'multipart/form-data'})[0] == 415


def test_other_names_for_this_machine():
    with serving(echo) as port:
        assert ask(port, 'GET', '/', headers={'Host': f'evil.example:{port}'})[0] == 400
        assert ask(port, 'POST', '/detect', b'x', BINARY | {'Host': 'evil.example'})[0] == 400


def test_slow_uploads_end():
    with serving(echo, seconds=0.3) as port, socket.create_connection(('127.0.0.1', port)) as client:
        client.sendall(b'POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n')
        client.sendall(b'Content-Length: 100\r\n\r\nx')
        client.settimeout(10)
        assert b' 408 ' in client.recv(4096).splitlines()[0]
        assert post(port, b'x')[0] == 200


def test_one_at_a_time_and_few_wait():
    """The third that comes is computed after the second; the fourth is told to come again."""
    running, most, go = [], [], threading.Event()

    def view(data):
        running.append(data)
        most.append(len(running))
        assert go.wait(20)
        running.remove(data)
        return dict(name=data.decode())

    answers = {}

    def send(name):
        answers[name] = post(port, name.encode())

    with serving(view, waiting=2) as port:
        threads = [threading.Thread(target=send, args=(name,)) for name in 'abc']
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        status, headers, text = ask(port, 'POST', '/detect', b'd', BINARY)
        assert (status, headers['retry-after']) == (503, '5')
        assert json.loads(text)['error'] == '3 images are waiting already: try again in a moment'
        assert ask(port, 'GET', '/')[0] == 200  # the page itself does not wait
        go.set()
        for thread in threads:
            thread.join()
        assert answers == {name: (200, dict(name=name)) for name in 'abc'} and max(most) == 1
        assert post(port, b'e')[0] == 200


def test_who_has_gone_is_not_computed_for():
    seen, go = [], threading.Event()

    def view(data):
        seen.append(data)
        assert go.wait(20)
        return {}

    with serving(view, waiting=5) as port:
        first = threading.Thread(target=post, args=(port, b'first'))
        first.start()
        time.sleep(0.1)
        with socket.create_connection(('127.0.0.1', port)) as client:
            client.sendall(b'POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n')
            client.sendall(b'Content-Length: 4\r\n\r\ngone')
            time.sleep(0.1)
        time.sleep(0.1)
        go.set()
        first.join()
        assert post(port, b'last')[0] == 200
        assert seen == [b'first', b'last']


def test_failures_are_told():
    def view(data):
        if data == b'bad':
            raise DataError('not an image')
        raise RuntimeError('a secret')

    with serving(view) as port:
        assert post(port, b'bad') == (422, dict(error='This file cannot be used: not an image.'))
        assert post(port, b'bug') == (500, dict(error='The detector failed; the console says why.'))
        assert post(port, b'bad')[0] == 422  # it goes on


# --- what is detected ------------------------------------------------------------------------------------------------


def inferencer_of(name):
    config = get_config(name)
    shrink(config.model)
    torch.manual_seed(0)
    inferencer = DDetrInferencer(config, device='cpu', show_progress=False)
    randomise(inferencer.model)
    return inferencer


@pytest.fixture(scope='module')
def viewers():
    names = dict(points='deformable-detr-refine-twostage_lite0_shapes', maps='detr_lite0_shapes')
    viewers = {kind: Viewer(inferencer_of(name), 10**6) for kind, name in names.items()}
    viewers['points'].inferencer.model.dataset_meta['classes'] = (EVIL, 'square', 'triangle', 'star', 'ring')
    return viewers


def encode(format='PNG', size=(120, 90), mode='RGB', **options):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).convert(mode).save(file, format, **options)
    return file.getvalue()


def numbers(text, kind):
    import base64

    return np.frombuffer(base64.b64decode(text), kind)


def test_points_are_those_of_the_queries(viewers):
    viewer = viewers['points']
    found = viewer(encode())
    explanation = explain(viewer.inferencer.model, cv2.imdecode(np.frombuffer(encode(), np.uint8), 1), 0.05)
    count = len(found['detections'])
    assert (found['kind'], found['size']) == ('points', [120, 90]) and 1 < count <= 60
    assert [d['name'] for d in found['detections']] == [d.name for d in explanation.detections[:count]]
    queries = [d.query for d in explanation.detections[:count]]
    layers = found['decoder']['layers']
    assert len(layers) == explanation.num_layers['decoder']
    for layer, stored in enumerate(layers):
        look = explanation.look('decoder', layer, queries)
        np.testing.assert_allclose((numbers(stored['weights'], 'u1') / 255) ** 2, look.weights.ravel(), atol=1 / 255)
        points = (numbers(stored['points'], '<u2') / 65535 * 2 - 0.5).reshape(-1, 2) * found['size']
        inside = ((look.points > [-60, -45]) & (look.points < [180, 135])).all(-1).ravel()
        np.testing.assert_allclose(points[inside], look.points.reshape(-1, 2)[inside], atol=0.01)
    json.dumps(found)


def test_dense_attention_is_a_map(viewers):
    found = viewers['maps'](encode())
    H, W = found['map']
    (layer, *_) = found['decoder']['layers']
    assert found['kind'] == 'maps' and len(found['extent']) == 4
    assert len(numbers(layer['weights'], 'u1')) == len(found['detections']) * found['heads'] * H * W


def test_detectors_without_queries(viewers, monkeypatch):
    viewer = Viewer(viewers['points'].inferencer, 10**6)
    expected = viewer(encode())['detections']
    monkeypatch.setattr(viewer, 'can_explain', False)
    found = viewer(encode())
    assert found['kind'] is None and 'decoder' not in found
    assert [d['score'] for d in found['detections']] == pytest.approx([d['score'] for d in expected], abs=1e-4)


def test_uploads_of_every_kind(viewers):
    viewer = viewers['points']
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [Image.new('RGB', (120, 90), colour) for colour in ('red', 'blue')]
    animated = io.BytesIO()
    frames[0].save(animated, 'GIF', save_all=True, append_images=frames[1:])
    chunk = b'IHDR' + struct.pack('>IIBBBBB', 20000, 20000, 8, 2, 0, 0, 0)
    bomb = encode()
    bomb = bomb[:12] + chunk + struct.pack('>I', zlib.crc32(chunk)) + bomb[33:]
    deep = cv2.imencode('.png', np.full((90, 120), 40000, np.uint16))[1].tobytes()
    for data, size in (
        (encode('JPEG', mode='CMYK'), [120, 90]),
        (encode(mode='L'), [120, 90]),
        (encode('JPEG', exif=turned), [90, 120]),
        (encode('WEBP'), [120, 90]),
        (animated.getvalue(), [120, 90]),
        (deep, [120, 90]),
        (encode(size=(1, 1)), [1, 1]),
    ):
        assert viewer(data)['size'] == size
    for data, message in (
        (b'', 'the file is empty'),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'not an image'),
        (encode('JPEG')[:300], 'ends in the middle|does not decode'),
        (encode('ICO'), 'a file of ICO, expected one of JPEG, PNG'),
        (encode(size=(1200, 900)), '1200 × 900 is 1.1 million pixels, expected at most 1 million'),
        (encode(size=(2000, 10)), '2000x10, expected at most 100 times as long'),
        (bomb, 'more than 134,217,728 pixels'),
    ):
        with pytest.raises(DataError, match=message):
            viewer(data)


@pytest.mark.slow
def test_the_tool(tmp_path):
    """From the command line to an answer, on this machine alone, and an end by Ctrl-C."""
    name = 'deformable-detr_lite0_shapes'
    torch.save(dict(state_dict=build_detector(get_config(name)).state_dict(), meta={}), tmp_path / 'a.pth')
    command = [
        sys.executable,
        ROOT / 'tools/webdemo.py',
        name,
        tmp_path / 'a.pth',
        '--port',
        '0',
        '--max-megapixels',
        '1',
    ]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]), OMP_NUM_THREADS='1')
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline()
            port = int(re.fullmatch(r'http://127\.0\.0\.1:(\d+)  \(Ctrl-C ends it\)\n', address)[1])
            assert f'{name} · a.pth' in ask(port, 'GET', '/')[2]
            assert post(port, encode())[1]['size'] == [120, 90]
            assert '1.1 million pixels, expected at most 1 million' in post(port, encode(size=(1200, 900)))[1]['error']
            assert ask(port, 'GET', '/', headers={'Host': 'evil.example'})[0] == 400
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


@pytest.mark.parametrize(
    'option, message',
    [
        (('--port', '70000'), '--port: must be a number from 0 to 65535, got 70000'),
        (('--max-megapixels', '1000'), '--max-megapixels: must be a number from 0.001 to 134, got 1000'),
        (('--waiting', '-1'), '--waiting: must be a number from 0 to 1000, got -1'),
    ],
)
def test_arguments(option, message, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    monkeypatch.setattr(sys, 'argv', ['webdemo.py', 'config', 'checkpoint', *option])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / 'tools/webdemo.py'), run_name='__main__')
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    'host, message',
    [('127.0.0.1', '--port {} is in use; take another'), ('no.such.invalid', '--host no.such.invalid --p')],
)
def test_an_address_that_it_cannot_listen_on(host, message, monkeypatch):
    """It is told before the checkpoint is looked for."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(sys, 'argv', ['webdemo.py', 'config', 'checkpoint', '--host', host, '--port', port])
        with pytest.raises(SystemExit, match=f'^webdemo.py: {message.format(port)}'):
            runpy.run_path(str(ROOT / 'tools/webdemo.py'), run_name='__main__')


# --- in a browser ----------------------------------------------------------------------------------------------------


def wait(browser, condition):
    deadline = time.monotonic() + 20
    while not browser.evaluate(condition):
        assert time.monotonic() < deadline, browser.evaluate("document.getElementById('status').textContent")
        time.sleep(0.02)


def status(browser):
    return browser.evaluate("document.getElementById('status').textContent")


def upload(browser, path):
    """By the button, as a user does."""
    root = browser.send('DOM.getDocument')['root']['nodeId']
    node = browser.send('DOM.querySelector', nodeId=root, selector='#file')['nodeId']
    browser.send('DOM.setFileInputFiles', nodeId=node, files=[str(path)])
    wait(browser, "!stage.classList.contains('busy') && !byId('status').textContent.endsWith('…')")


def set_slider(browser, name, value):
    browser.evaluate(f"byId('{name}').value = {value}; byId('{name}').dispatchEvent(new Event('input'))")


def middle(browser, expression):
    frame = f'(({{x, y, width, height}}) => [x + width / 2, y + height / 2])(({expression}).getBoundingClientRect())'
    return browser.evaluate(frame)


def count(browser, selector):
    return browser.evaluate(f"document.querySelectorAll('{selector}').length")


@pytest.fixture
def opened(browser, viewers, request):
    """The page of a viewer, and the requests that it sent; afterwards, no error and no request elsewhere."""
    seen = []

    def view(data):
        seen.append(data)
        return viewers[request.param](data)

    with serving(view, title=EVIL) as port:
        browser.events.clear()
        browser.mouse('Moved', 1, 1)
        browser.open(f'http://127.0.0.1:{port}/')
        yield browser, seen
        told = [
            event for event in browser.events if event.get('method') in ('Runtime.exceptionThrown', 'Log.entryAdded')
        ]
        assert [event for event in told if '422' not in json.dumps(event)] == []
        sent = [e['params']['request']['url'] for e in browser.events if e.get('method') == 'Network.requestWillBeSent']
        assert {url for url in sent if not url.startswith(('data:', f'http://127.0.0.1:{port}/'))} == set()
        assert not any(event.get('method') == 'Page.javascriptDialogOpening' for event in browser.events)


@pytest.mark.parametrize('opened', ['points'], indirect=True)
def test_page_of_points(opened, viewers, tmp_path):
    browser, seen = opened
    (tmp_path / 'photo.png').write_bytes(encode())
    upload(browser, tmp_path / 'photo.png')
    detections = viewers['points'](encode())['detections']
    scores = sorted(d['score'] for d in detections)
    cut = scores[len(scores) // 2]
    set_slider(browser, 'threshold', 0.05)
    assert count(browser, '#boxes rect') == count(browser, '#list button') == len(detections)
    set_slider(browser, 'threshold', round(cut, 2))
    left = sum(score >= round(cut, 2) for score in scores)
    assert count(browser, '#boxes rect') == left < len(detections)
    assert len(seen) == 1  # the slider asks for nothing

    set_slider(browser, 'threshold', 0.05)
    assert count(browser, 'circle') == 0
    browser.mouse('Moved', *middle(browser, "document.querySelector('#list button')"))
    wait(browser, "document.querySelectorAll('circle').length > 0")
    data = viewers['points'](encode())
    each = data['heads'] * len(data['levels']) * data['points']
    assert count(browser, 'circle') == each and f'{each} sampling points of layer' in status(browser)
    name = browser.evaluate("document.querySelector('#list button').firstChild.textContent")
    assert name == detections[0]['name'] and name in status(browser)
    assert EVIL in browser.evaluate('document.body.textContent') and count(browser, 'img') == 0

    # the points are where the layer sampled, and move with the layer; a click pins them
    at = "[...document.querySelectorAll('circle')].map((c) => [+c.getAttribute('cx'), +c.getAttribute('cy')])"
    stored = numbers(data['decoder']['layers'][-1]['points'], '<u2')[: 2 * each].reshape(-1, 2)
    expected = (stored / 65535 * 2 - 0.5) * data['size']
    found = np.array(browser.evaluate(at))
    assert np.abs(np.sort(found, 0) - np.sort(expected, 0)).max() < 0.01
    browser.click(*middle(browser, "document.querySelector('#list button')"))
    browser.mouse('Moved', 2, 2)
    assert count(browser, 'circle') == each
    set_slider(browser, 'layer', 1)
    assert 'layer 1:' in status(browser) and not np.allclose(found, browser.evaluate(at))


@pytest.mark.parametrize('opened', ['maps'], indirect=True)
def test_page_of_maps(opened, tmp_path):
    browser, _ = opened
    (tmp_path / 'photo.png').write_bytes(encode())
    upload(browser, tmp_path / 'photo.png')
    set_slider(browser, 'threshold', 0.05)
    browser.mouse('Moved', *middle(browser, "document.querySelector('#list button')"))
    wait(browser, "document.querySelectorAll('#heat image').length === 1")
    assert 'Attention of layer' in status(browser)


@pytest.mark.parametrize('opened', ['points'], indirect=True)
def test_page_tells_what_is_wrong(opened, tmp_path):
    browser, seen = opened
    (tmp_path / 'text.png').write_text('no picture')
    upload(browser, tmp_path / 'text.png')
    assert status(browser) == 'text.png: This file cannot be used: not an image.'
    with open(tmp_path / 'large.png', 'wb') as file:
        file.truncate(21 * 2**20)
    upload(browser, tmp_path / 'large.png')
    assert status(browser) == 'large.png has more than 20 MiB.' and len(seen) == 1
    (tmp_path / 'photo.png').write_bytes(encode())
    upload(browser, tmp_path / 'photo.png')
    assert '120 × 90 px' in status(browser)


@pytest.mark.parametrize('opened', ['points'], indirect=True)
def test_dropped(opened):
    browser, seen = opened
    browser.evaluate(
        f"""(() => {{
          const data = new DataTransfer(), bytes = new Uint8Array({list(encode())});
          data.items.add(new File([bytes], 'dropped.png'));
          document.body.dispatchEvent(new DragEvent('drop', {{ dataTransfer: data, bubbles: true, cancelable: true }}));
        }})()"""
    )
    wait(browser, "byId('status').textContent.includes('120 × 90 px')")
    assert seen == [encode()]
