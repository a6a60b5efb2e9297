"""Folders, patterns, addresses, videos and cameras, and what is said of those that give no picture."""

import http.server
import itertools
import threading
import time

import cv2
import numpy as np
import pytest

from mmdet_ddetr.apis import video, video_file
from mmdet_ddetr.apis.inputs import number_of, pictures
from mmdet_ddetr.apis.video_file import VideoFile
from mmdet_ddetr.datasets import DataError, download
from mmdet_ddetr.datasets.files import read_file

FPS = 12.5


def gray(value, size=(48, 64)):
    return np.full((*size, 3), value, np.uint8)


def write_video(path, values, size=(48, 64)):
    file = VideoFile(path, FPS, size[::-1])
    for value in values:
        file.write(gray(value, size))
    file.close()
    return path


def read_all(inputs, **kwargs):
    """[(what it comes from, number of the frame, mean or message)]."""
    found = []
    for picture in pictures(inputs, **kwargs):
        try:
            found.append((picture.origin, picture.number, round(float(picture.read().mean()) / 10) * 10))
        except (ValueError, OSError) as error:
            found.append((picture.origin, picture.number, str(error)))
    return found


def test_folders_and_patterns(tmp_path):
    for name in ('b.png', 'a.JPG', 'sub/c.png', 'sub/deep/d.png', 'odd[1].png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), gray(100))
    (tmp_path / 'notes.txt').touch()
    write_video(tmp_path / 'c.mp4', [0, 50])

    def names(inputs):
        assert number_of(inputs) == len(read_all(inputs))
        return [str(path).removeprefix(f'{tmp_path}/') for path, *_ in read_all(inputs)]

    assert names(tmp_path) == ['a.JPG', 'b.png', 'c.mp4', 'c.mp4', 'odd[1].png']
    assert names(f'{tmp_path}/**/*.png') == ['b.png', 'odd[1].png', 'sub/c.png', 'sub/deep/d.png']
    assert names(f'{tmp_path}/*') == names(tmp_path)  # not the text, not the folder
    assert names(f'{tmp_path}/odd[1].png') == ['odd[1].png']  # the name of a file is no pattern
    ((_, _, message),) = read_all(f'{tmp_path}/*.txt')
    assert message.startswith("no image matches '") and '1 others do; expected files ending in .jpg' in message


def test_a_bad_one_is_named_and_the_others_follow(tmp_path):
    (tmp_path / 'empty').mkdir()
    cv2.imwrite(str(tmp_path / 'a.png'), gray(100))
    inputs = [
        tmp_path / 'empty',
        f'{tmp_path}/no*.jpg',
        's3://x/a.jpg',
        tmp_path / 'none.mp4',
        'a\0*',
        tmp_path / 'a.png',
    ]
    messages = [message for *_, message in read_all(inputs)]
    assert messages[0].startswith(f"no image in '{tmp_path}/empty'; expected files ending in .jpg")
    assert messages[1] == (
        f"no file matches '{tmp_path}/no*.jpg': the folder '{tmp_path}' holds none; for folders inside it, give the "
        f"pattern '{tmp_path}/**/*'"
    )
    assert messages[2] == 's3://x/a.jpg: expected an address of http://, https://, or rtsp:// of a camera'
    assert messages[3] == f'{tmp_path}/none.mp4: no such file'
    assert messages[4] == 'a\0*: not readable: its name has a character that no file name can have'
    assert messages[5] == 100


def test_what_a_pattern_could_have_been(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'photos/deep').mkdir(parents=True)

    def message(pattern):
        return read_all(pattern)[0][2]

    assert message('photo/*.jpg') == f"no file matches 'photo/*.jpg': there is no folder 'photo' in {tmp_path}"
    assert message('/none/*.jpg') == "no file matches '/none/*.jpg': there is no folder '/none'"
    assert message('*.jpg').startswith(
        f"no file matches '*.jpg': the folder '{tmp_path}' holds none; for folders inside"
    )
    assert message('photos/deep/*') == (
        f"no file matches 'photos/deep/*': the folder '{tmp_path}/photos/deep' holds none"
    )
    assert message('photos').endswith("; for folders inside it, give the pattern 'photos/**/*'")


# --- videos ----------------------------------------------------------------------------------------------------------


def test_frames_come_in_order_with_their_time(tmp_path):
    path = write_video(tmp_path / 'a.mp4', [0, 50, 100, 150, 200])
    found = list(pictures(path))
    assert [round(picture.time, 3) for picture in found] == [0, 0.08, 0.16, 0.24, 0.32]
    assert [picture.clip.fps for picture in found] == [FPS] * 5
    assert [(number, value) for _, number, value in read_all(path)] == [(0, 0), (1, 50), (2, 100), (3, 150), (4, 200)]
    assert [(number, value) for _, number, value in read_all(path, every=2)] == [(0, 0), (2, 100), (4, 200)]
    assert (number_of(path), number_of(path, every=2), number_of([path, path])) == (5, 3, 10)


def test_frames_are_read_as_they_are_needed(tmp_path, monkeypatch):
    path = write_video(tmp_path / 'a.mp4', range(0, 200, 10))
    read = []
    pixels = video._pixels
    monkeypatch.setattr(video, '_pixels', lambda capture: read.append(1) or pixels(capture))
    stream = pictures(path)
    next(stream)
    assert len(read) == 1


@pytest.fixture(params=['h264', 'mpeg4'])
def codec(request, monkeypatch):
    """Each kind of video that may be written."""
    if request.param == 'mpeg4':
        monkeypatch.setattr(video_file, '_by_pyav', lambda *args: None)
        monkeypatch.setattr(video_file, 'CODES', ('mp4v',))
    else:
        pytest.importorskip('av')
    return request.param


def test_what_is_written(codec, tmp_path):
    """Every frame at its time, in the codec that is named, with odd sides and fractions of frames a second."""
    file = VideoFile(tmp_path / 'a.mp4', 30000 / 1001, (65, 49))
    shades = [20 * i for i in range(12)]
    for shade in shades:
        file.write(gray(shade, (49, 65)))
    file.close()
    found = list(pictures(tmp_path / 'a.mp4'))
    assert found[0].clip.fps == pytest.approx(29.97, abs=0.001) and found[0].clip.count == 12
    assert [picture.time for picture in found] == pytest.approx([i * 1001 / 30000 for i in range(12)], abs=1e-3)
    assert [picture.read().shape for picture in found] == [(50, 66, 3)] * 12
    assert [picture.read().mean() for picture in found] == pytest.approx(shades, abs=4)  # chroma is rounded
    code = int(cv2.VideoCapture(str(tmp_path / 'a.mp4')).get(cv2.CAP_PROP_FOURCC)).to_bytes(4, 'little')
    assert code == dict(h264=b'h264', mpeg4=b'FMP4')[codec]


def test_a_browser_plays_it(tmp_path, browser):
    pytest.importorskip('av')
    path = write_video(tmp_path / 'a.mp4', [0, 50, 100])
    browser.open(path.as_uri())
    video = "document.querySelector('video')"
    deadline = time.monotonic() + 10
    while not browser.evaluate(f'{video}.readyState >= 2'):  # it has a picture
        assert time.monotonic() < deadline and not browser.evaluate(f'{video}.error !== null')
        time.sleep(0.02)


def test_a_video_wider_than_its_format(codec, tmp_path):
    path = write_video(tmp_path / 'a.mp4', [100], size=(100, 8400))
    assert next(pictures(path)).read().shape == (98, 8190, 3)


def test_a_disk_that_is_full(codec, tmp_path):
    """OpenCV says nothing of it."""
    resource = pytest.importorskip('resource')
    file = VideoFile(tmp_path / 'a.mp4', FPS, (64, 48))
    noise = np.random.default_rng(0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, before[1]))
    try:
        with pytest.raises(OSError, match=r'a.mp4: the video is damaged, .*: is the disk full\?'):
            for _ in range(50):
                file.write(noise.integers(0, 256, (48, 64, 3), np.uint8))
            file.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (lambda data: b'', 'the file is empty'),
        (lambda data: b'no video' * 99, 'not a video, or damaged'),
        (lambda data: data[: len(data) // 2], 'not a video, or damaged'),
        (lambda data: b'ffconcat version 1.0\nfile good.mp4\n', 'not a video, or damaged'),  # others' files
        (lambda data: b'#EXTM3U\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n', 'not a video, or damaged'),
    ],
)
def test_what_is_no_video(content, message, tmp_path, capfd):
    good = write_video(tmp_path / 'good.mp4', range(0, 200, 10))
    (tmp_path / 'bad.mp4').write_bytes(content(good.read_bytes()))
    ((_, _, told),) = read_all(tmp_path / 'bad.mp4')
    assert told == f'{tmp_path / "bad.mp4"}: {message}'
    assert capfd.readouterr().err == ''  # ffmpeg has its own words


def test_a_damaged_video_keeps_what_came_before(tmp_path):
    path, random = tmp_path / 'a.mp4', np.random.default_rng(0)
    file = VideoFile(path, FPS, (64, 48))
    for _ in range(24):
        file.write(random.integers(0, 256, (48, 64, 3), np.uint8))
    file.close()
    data = path.read_bytes()
    third = len(data) // 3
    path.write_bytes(data[:third] + bytes(third) + data[2 * third :])
    *frames, (_, _, message) = read_all(path)
    assert 3 < len(frames) < 24
    assert message == f'{path}: ends after {len(frames)} of 24 frames: the file is damaged or cut off'


def test_limits_of_frames(tmp_path, monkeypatch):
    long = write_video(tmp_path / 'long.mp4', [10], size=(4, 600))
    assert '600x4, expected at most 100 times as long' in read_all(long)[0][2]
    monkeypatch.setattr(video, 'MAX_PIXELS', 1000)
    assert '600x4 is 2,400 pixels, expected at most 1,000' in read_all(long)[0][2]


class Camera:
    """As OpenCV's, with five pictures, of which one does not decode."""

    def __init__(self, source, *backend):
        self.source, self.number = source, -1

    def isOpened(self):  # noqa: N802
        return self.source in (2, 'rtsp://camera/1')

    def get(self, key):
        return {cv2.CAP_PROP_FPS: 30.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}.get(key, 64.0)

    def grab(self):
        self.number += 1
        return self.number < 5

    def retrieve(self):
        return (False, None) if self.number == 3 else (True, gray(10 * self.number))

    def release(self):
        pass


@pytest.mark.parametrize(('source', 'name'), [(2, 'camera 2'), ('rtsp://camera/1', 'rtsp://camera/1')])
def test_cameras(source, name, monkeypatch):
    monkeypatch.setattr(cv2, 'VideoCapture', Camera)
    *found, last = read_all(source)
    assert found[:3] + found[4:] == [(name, number, 10 * number) for number in (0, 1, 2, 4)]
    assert found[3][2] == f'{name}, frame 3: does not decode'
    assert last[2] == f'{name}: gives no more pictures, after 5'
    assert number_of(source) is None
    assert read_all(7)[0][2] == 'camera 7: no camera of this number gives pictures'
    with pytest.raises(ValueError, match='inputs is -1, expected the number of a camera'):
        next(pictures(-1))
    with pytest.raises(TypeError, match='inputs is of type bool'):
        next(pictures(True))


# --- the web ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp('web')
    cv2.imwrite(str(folder / 'a.png'), gray(100))
    write_video(folder / 'v.mp4', [0, 50, 100])
    files = {f'/{path.name}': path.read_bytes() for path in folder.iterdir()}

    class Handler(http.server.BaseHTTPRequestHandler):
        requests = []

        def do_GET(self):  # noqa: N802
            self.requests.append(self.path)
            if self.path == '/elsewhere.png':
                return self.answer(302, [('Location', 'file:///etc/hostname')])
            if self.path == '/moved.png':
                return self.answer(302, [('Location', '/a.png')])
            if self.path == '/short.png':
                return self.answer(200, [('Content-Length', '1000')], b'x' * 10)
            if self.path == '/endless.png':
                return self.answer(200, [], itertools.repeat(bytes(2**16), 1000))
            if self.path == '/large.png':
                return self.answer(200, [('Content-Length', str(10**12))])
            if self.path == '/silent.png':
                time.sleep(1)
                return self.answer(200, [])
            body = files.get(self.path)
            return self.answer(404 if body is None else 200, [], body or b'')

        def answer(self, code, headers, body=b''):
            self.send_response(code)
            for header in headers:
                self.send_header(*header)
            self.end_headers()
            try:
                for chunk in [body] if isinstance(body, bytes) else body:
                    self.wfile.write(chunk)
            except OSError:  # the client has gone
                pass

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.address = f'http://127.0.0.1:{server.server_port}'
    server.asked = Handler.requests
    yield server
    server.shutdown()
    server.server_close()


def test_addresses(server):
    assert read_all(f'{server.address}/a.png') == [(f'{server.address}/a.png', None, 100)]
    assert read_all(f'{server.address}/moved.png')[0][2] == 100
    found = read_all([f'{server.address}/v.mp4', f'{server.address}/none.mp4'])
    assert [value for *_, value in found[:3]] == [0, 50, 100]
    assert found[0][0] == f'{server.address}/v.mp4'
    assert found[3][2].endswith('none.mp4: not readable: the server answers 404 Not Found')
    server.asked.clear()
    (picture,) = pictures(f'{server.address}/a.png')
    picture = picture.downloaded()
    assert picture.read().mean() == picture.read().mean() == 100
    assert (picture.path, server.asked) == (f'{server.address}/a.png', ['/a.png'])


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('none.png', 'the server answers 404 Not Found'),
        ('elsewhere.png', "Redirection to url 'file:///etc/hostname' is not allowed"),
        ('short.png', 'the server sent 10 of 1,000 bytes'),
        ('large.png', 'more than 1 MiB, which is the most that is downloaded'),
        ('endless.png', 'more than 1 MiB, which is the most that is downloaded'),
        ('silent.png', 'the server was silent for 0.2 s'),
    ],
)
def test_addresses_that_give_nothing(server, name, message, monkeypatch):
    monkeypatch.setattr(download, 'TIMEOUT', 0.2)
    monkeypatch.setattr('mmdet_ddetr.datasets.files.MAX_DOWNLOAD', 2**20)
    with pytest.raises(DataError, match=message):
        read_file(f'{server.address}/{name}')
    assert message in read_all(f'{server.address}/{name}')[0][2]


def test_addresses_that_are_none():
    with pytest.raises(DataError, match='not readable: '):
        read_file('http://127.0.0.1:1/a.png')
    with pytest.raises(DataError, match='not readable: '):
        read_file('http://a b\n/a.png')
