"""``hf://`` addresses, against a server on this machine that answers like the hub."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from mmengine.runner import CheckpointLoader

from mmdet_ddetr.checkpoints import CheckpointError, convert, hub

COMMIT = '0123456789abcdef0123456789abcdef01234567'


class Hub(BaseHTTPRequestHandler):
    """Serves /<owner>/<name>/resolve/<revision>/<file>."""

    def do_GET(self, with_body=True):
        self.server.requests.append(f'{self.command} {self.path}')
        body = self.server.files.get(self.path.lstrip('/'))
        if self.path.startswith('/someone/private'):
            return self.answer(401, b'', [('X-Error-Code', 'RepoNotFound')])
        if body is None:
            return self.answer(404, b'', [('X-Error-Code', 'EntryNotFound'), ('X-Repo-Commit', COMMIT)])
        self.answer(
            200, body if with_body else None, [('X-Repo-Commit', COMMIT), ('ETag', f'"{len(body)}"')], len(body)
        )

    def do_HEAD(self):
        self.do_GET(with_body=False)

    def answer(self, code, body, headers, length=0):
        self.send_response(code)
        for name, value in [*headers, ('Content-Length', str(length))]:
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope='module')
def weights(build, tmp_path_factory):
    """Bytes of a pytorch_model.bin, and the state_dict of ours in it."""
    ours = build('refine').state_dict()
    path = tmp_path_factory.mktemp('weights') / 'pytorch_model.bin'
    torch.save(convert(ours, target='huggingface'), path)
    return path.read_bytes(), ours


@pytest.fixture
def server(weights, tmp_path, monkeypatch):
    """A running hub with one model; its cache is new."""
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.requests = []
    folder = 'someone/small-detr/resolve/'
    server.files = {f'{folder}{revision}/pytorch_model.bin': weights[0] for revision in ('main', 'v1.0')}
    server.files[f'{folder}main/config.json'] = json.dumps(dict(id2label={})).encode()
    Thread(target=server.serve_forever, daemon=True).start()
    for name in ('HF_HUB_CACHE', 'XDG_CACHE_HOME', 'HF_HUB_OFFLINE', 'HF_TOKEN'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{server.server_port}')
    monkeypatch.setenv('HF_HOME', str(tmp_path))
    monkeypatch.setenv('HF_HUB_DISABLE_XET', '1')
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(params=['https', 'huggingface_hub'])
def client(request, monkeypatch):
    """Either way to download."""
    if request.param == 'https':
        monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    else:
        pytest.importorskip('huggingface_hub')


def load(address):
    return CheckpointLoader.load_checkpoint(address, map_location='cpu', logger='silent')


def test_load_from_the_hub(client, server, weights, tmp_path, build):
    """As ``load_from`` does: downloaded, converted, kept in the cache."""
    checkpoint = load('hf://someone/small-detr')
    assert all(torch.equal(checkpoint['state_dict'][key], value) for key, value in weights[1].items())
    build('refine', seed=1).load_state_dict(checkpoint['state_dict'], strict=True)
    assert len(checkpoint['meta']['dataset_meta']['classes']) == 80
    assert list((tmp_path / 'hub').rglob('pytorch_model.bin'))

    server.requests.clear()
    again = load('hf://someone/small-detr')
    assert again['state_dict'].keys() == checkpoint['state_dict'].keys()
    assert server.requests == []


def test_revision(client, server):
    load('hf://someone/small-detr@v1.0')
    assert any('/resolve/v1.0/pytorch_model.bin' in request for request in server.requests)
    assert not any('main' in request for request in server.requests)


def test_errors(client, server, tmp_path):
    server.files['someone/empty/resolve/main/README.md'] = b'nothing else'
    with pytest.raises(CheckpointError, match=r'hf://someone/empty@main has neither model\.safetensors nor pytorch_mo'):
        load('hf://someone/empty')
    with pytest.raises(CheckpointError, match='hf://someone/private'):
        load('hf://someone/private')
    for address in ('hf://small-detr', 'hf://a/b/c', 'hf://'):
        with pytest.raises(CheckpointError, match=f"got '{address}', expected hf://owner/name or hf://owner/name@rev"):
            load(address)


def test_no_network(client, server, tmp_path, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # huggingface_hub tries again for 23 s
    server.shutdown()
    server.server_close()
    with pytest.raises(
        CheckpointError,
        match=rf'hf://someone/small-detr is not in {tmp_path}/hub and cannot be downloaded \(.+\)\. On a machine with',
    ):
        load('hf://someone/small-detr')


def test_offline(server, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(CheckpointError, match=r'cannot be downloaded \(HF_HUB_OFFLINE is set\)'):
        load('hf://someone/small-detr')
    assert server.requests == []


@pytest.mark.parametrize(
    ('variables', 'folder'),
    [
        (dict(HF_HUB_CACHE='/a', HF_HOME='/b'), '/a'),
        (dict(HF_HOME='/b', XDG_CACHE_HOME='/c'), '/b/hub'),
        (dict(XDG_CACHE_HOME='/c'), '/c/huggingface/hub'),
        (dict(HOME='/d'), '/d/.cache/huggingface/hub'),
    ],
)
def test_cache_folder(variables, folder, monkeypatch):
    for name in ('HF_HUB_CACHE', 'HF_HOME', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(hub.cache_folder()) == folder
