"""One place reads images: check and loaders agree on every format and orientation, and no file costs without bound."""

import io
import os
import socket
import struct
import time
import zlib

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image

from mmdet_ddetr.apis.outputs import distinct_name
from mmdet_ddetr.datasets import DataError, LoadImageFromFile, decode_image, read_image
from mmdet_ddetr.datasets.files import read_file
from mmdet_ddetr.datasets.image_file import MAX_PIXELS, inspect_image, read_header

COLOURS = {'R': (255, 0, 0), 'G': (0, 255, 0), 'B': (0, 0, 255), 'W': (255, 255, 255)}
QUARTERS = np.array([[COLOURS['R'], COLOURS['G']], [COLOURS['B'], COLOURS['W']]], np.uint8)
PICTURE = QUARTERS.repeat(20, axis=0).repeat(30, axis=1)  # 60x40, RGB
# its quarters in reading order once it is turned as EXIF orientation 1 to 8 says
UPRIGHT = ('RGBW', 'GRWB', 'WBGR', 'BWRG', 'RBGW', 'BRWG', 'WGBR', 'GWRB')


def encode(picture, file_format, orientation=None, **kwargs):
    if orientation is not None:
        kwargs['exif'] = exif = Image.Exif()
        exif[0x0112] = orientation
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, file_format, **kwargs)
    return file.getvalue()


def quarters(bgr):
    """The colours of the quarters, in reading order."""
    h, w = bgr.shape[:2]
    pixels = [bgr[y, x, ::-1].astype(int) for y in (h // 4, h - h // 4) for x in (w // 4, w - w // 4)]
    return ''.join(min(COLOURS, key=lambda name: np.abs(pixel - COLOURS[name]).sum()) for pixel in pixels)


@pytest.mark.parametrize('file_format', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation(tmp_path, file_format, orientation):
    if file_format == 'AVIF' and 'AVIF' not in Image.SAVE:
        pytest.skip('this Pillow writes no AVIF')
    path = tmp_path / 'picture'
    path.write_bytes(encode(PICTURE, file_format, orientation))
    facts = inspect_image(path)
    assert (facts.width, facts.height) == ((60, 40) if orientation < 5 else (40, 60))
    assert facts.rotated == (orientation > 4)
    loaded = LoadImageFromFile().transform(dict(img_path=str(path)))
    assert loaded['img'].shape == (facts.height, facts.width, 3) and loaded['ori_shape'] == loaded['img'].shape[:2]
    assert quarters(loaded['img']) == UPRIGHT[orientation - 1]
    np.testing.assert_array_equal(read_image(path), loaded['img'])
    assert decode_image(path.read_bytes(), 'grayscale').shape == (facts.height, facts.width)


def test_orientation_of_16_bits():
    picture = Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257)
    for file_format in ('TIFF', 'PNG'):
        pixels = decode_image(encode(picture, file_format, 6))
        assert pixels.shape == (60, 40, 3) and pixels.dtype == np.uint8
        assert pixels[5, 30].tolist() == [255] * 3 and pixels[5, 5].tolist() == [0] * 3  # R is on the right


def test_orientation_can_be_left():
    data = encode(PICTURE, 'JPEG', 6)
    assert (
        quarters(decode_image(data, 'color_ignore_orientation')) == quarters(decode_image(data, 'unchanged')) == 'RGBW'
    )


@pytest.mark.parametrize('orientation', [0, 9, 65535])
def test_damaged_orientation_is_none(orientation):
    assert read_header(encode(PICTURE, 'JPEG', orientation)).orientation == 1
    data = encode(PICTURE, 'JPEG', 6).replace(b'Exif\0\0MM', b'Exif\0\0??')
    assert read_header(data).orientation == 1


@pytest.mark.parametrize(
    ('file_format', 'mode'),
    [(name, 'RGB') for name in ('DIB', 'DDS', 'IM', 'PCX', 'QOI', 'SGI', 'TGA')]
    + [('BLP', 'P'), ('ICO', 'RGBA'), ('TGA', 'RGBA'), ('MSP', '1'), ('XBM', '1')],
)
def test_what_opencv_does_not_decode(tmp_path, file_format, mode):
    picture = Image.fromarray(PICTURE).convert(mode)
    if file_format == 'BLP' or mode == '1':
        picture = Image.fromarray(PICTURE[..., 0]).convert(mode)
    options = dict(sizes=[(60, 40)]) if file_format == 'ICO' else {}
    (tmp_path / 'picture').write_bytes(encode(picture, file_format, **options))
    facts = inspect_image(tmp_path / 'picture', decode=True)
    pixels = read_image(tmp_path / 'picture')
    assert (facts.width, facts.height) == (60, 40) and pixels.shape == (40, 60, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[..., ::-1], np.asarray(picture.convert('RGB')))


@pytest.mark.parametrize('flag', ['color', 'grayscale', 'unchanged'])
def test_pixels_are_those_of_opencv(flag):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    for picture in (noise, noise[..., :3], noise[..., 0], noise[..., 0].astype(np.uint16) * 200):
        for file_format in ('PNG', 'TIFF'):
            data = encode(picture, file_format)
            expected = mmcv.imfrombytes(data, flag=flag)
            found = decode_image(data, flag)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ('pixels', 'what'),
    [
        (np.full((4, 6), 0.5, np.float32), '1 x 32-bit floats'),
        (np.full((4, 6), 0.5, np.float64), '1 x 64-bit floats'),
        (np.full((4, 6, 3), 0.5, np.float32), '3 x 32-bit floats'),
        (np.full((4, 6), 70000, np.int32), '1 x 32-bit whole numbers with a sign'),
    ],
)
def test_a_tiff_of_unknown_range(tmp_path, pixels, what):
    """The loader, the check of the data and the inferencer say what it is, rather than "not an image" or black."""
    path = tmp_path / 'deep.tif'
    path.write_bytes(cv2.imencode('.tiff', pixels)[1].tobytes())
    message = f'a TIFF of {what}, which is not read: save it as PNG of 8 or 16 bits, gray or RGB'
    with pytest.raises(DataError, match=f'^{path}: {message}$'):
        read_image(path)
    with pytest.raises(DataError, match=f'^{message}$'):
        inspect_image(path, decode=True)
    if pixels.ndim == 2 and pixels.itemsize == 4:  # who asks for the numbers themselves gets them
        np.testing.assert_array_equal(decode_image(path.read_bytes(), 'unchanged'), pixels)


def test_a_tiff_of_damaged_tags():
    with pytest.raises(DataError, match='a TIFF whose tags are damaged'):
        decode_image(b'II*\0' + b'\xff' * 40)


def test_floats_of_other_formats():
    data = encode(Image.fromarray(PICTURE[..., 0]).convert('F'), 'SPIDER')
    with pytest.raises(DataError, match='a SPIDER of floats, which is not read: save it as PNG'):
        decode_image(data)


def test_opencv_and_pillow_agree(monkeypatch):
    """The second way of decoding gives the pixels of the first."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    for picture in (noise, noise[..., :3], noise[..., 0], noise[..., 0].astype(np.uint16) * 200):
        for flag in ('color', 'unchanged', 'grayscale'):
            data = encode(picture, 'PNG', 6)
            expected = decode_image(data, flag).astype(int)
            with monkeypatch.context() as patch:
                patch.setattr('mmdet_ddetr.datasets.image_file._decode_by_opencv', lambda *args: None)
                found = decode_image(data, flag)
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= (1 if flag == 'grayscale' else 0)


# ----------------------------------------------------------------------------------------------------- whole or cut off
JPEG, PNG = (encode(PICTURE, name) for name in ('JPEG', 'PNG'))
FILM = b'\0\0\0\x18ftypmp42' + b'\xff\xda\xff\xd8 IEND \xff\xe1\xff\xff' + bytes(99)  # as phones append it
THUMBNAIL = b'\xff\xe1' + struct.pack('>H', len(JPEG) + 2) + JPEG  # a whole JPEG within the first segment


@pytest.mark.parametrize(
    'data',
    [JPEG + FILM, JPEG + bytes(100), JPEG[:2] + THUMBNAIL + JPEG[2:] + FILM, encode(PICTURE, 'JPEG', progressive=True)]
    + [PNG + FILM, PNG + bytes(100)],
)
def test_what_follows_the_end_of_an_image(tmp_path, data):
    (tmp_path / 'a').write_bytes(data)
    assert quarters(read_image(tmp_path / 'a')) == 'RGBW'
    assert read_header(data).width == 60


@pytest.mark.parametrize('left', [30, 3, 1])
@pytest.mark.parametrize('data', [JPEG, JPEG[:2] + THUMBNAIL + JPEG[2:], PNG], ids=['JPEG', 'with thumbnail', 'PNG'])
def test_a_cut_off_image(data, left):
    left += 12 if data is PNG else 0  # a PNG has all pixels before its last chunk
    with pytest.raises(DataError, match='the (JPEG|PNG) ends '):
        read_header(data[:-left])


# ------------------------------------------------------------------------------------------------- what a file may cost
def png_header(width, height):
    """A PNG that claims a size and has next to no data."""

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0' * 99)) + chunk(b'IEND', b'')
    )


@pytest.mark.parametrize('size', [(MAX_PIXELS // 2**10 + 1, 2**10), (40000, 40000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels(tmp_path, size):
    path = tmp_path / 'bomb.png'
    path.write_bytes(png_header(*size))
    with pytest.raises(DataError, match=f'{MAX_PIXELS:,}'):
        inspect_image(path)
    with pytest.raises(DataError, match=f'bomb.png.*{MAX_PIXELS:,}'):
        LoadImageFromFile().transform(dict(img_path=str(path)))


def test_a_bomb_within_a_small_image(tmp_path):
    """An icon holds a picture whose size only its own header says."""
    bomb = png_header(40000, 40000)
    entry = struct.pack('<BBBBHHII', 16, 16, 0, 0, 1, 32, len(bomb), 22)
    (tmp_path / 'a.ico').write_bytes(struct.pack('<HHH', 0, 1, 1) + entry + bomb)
    with pytest.raises(DataError):
        read_image(tmp_path / 'a.ico')


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / 'pipe.jpg')
    (tmp_path / 'folder.jpg').mkdir()
    (tmp_path / 'zero.jpg').symlink_to('/dev/zero')
    (tmp_path / 'loop.jpg').symlink_to('loop.jpg')
    with socket.socket(socket.AF_UNIX) as server, open(tmp_path / 'huge.jpg', 'wb') as huge:
        server.bind(str(tmp_path / 'socket.jpg'))
        huge.truncate(2**40)
        for name, message in (
            ('pipe.jpg', 'a pipe or device, expected a file'),
            ('socket.jpg', 'a pipe or device, expected a file'),
            ('zero.jpg', 'a pipe or device, expected a file'),
            ('folder.jpg', 'a folder, expected a file'),
            ('huge.jpg', '1024.0 GiB, expected at most 1 GiB'),
            ('loop.jpg', 'not readable: Too many levels'),
            ('x' * 300, 'not readable: File name too long'),
            ('a\0b.jpg', 'not readable: its name has a character'),
            ('a\ud800b.jpg', 'not readable: its name has a character'),
            ('none.jpg', 'no such file'),
        ):
            with pytest.raises(DataError, match=message):
                read_file(tmp_path / name)
            with pytest.raises(DataError, match=message):
                inspect_image(tmp_path / name)
            with pytest.raises(DataError, match=message):
                LoadImageFromFile().transform(dict(img_path=str(tmp_path / name)))


def test_no_program_runs(tmp_path, monkeypatch):
    """Pillow hands EPS files to Ghostscript."""
    monkeypatch.setattr('subprocess.Popen', lambda *args, **kwargs: pytest.fail('a program was started'))
    monkeypatch.setattr('subprocess.check_call', lambda *args, **kwargs: pytest.fail('a program was started'))
    (tmp_path / 'a.jpg').write_bytes(encode(PICTURE, 'EPS'))
    with pytest.raises(DataError, match='not an image'):
        read_image(tmp_path / 'a.jpg')


def test_segments_are_read_through_here(tmp_path):
    """A PNG that claims 40,000 x 40,000 px, and a pipe, are refused by the loader of segments, too."""
    from mmdet_ddetr.datasets import LoadPanopticInstances

    (tmp_path / 'a.png').write_bytes(png_header(40000, 40000))
    with pytest.raises(DataError, match='a.png .image id 7.*134,217,728'):
        LoadPanopticInstances().transform(dict(seg_map_path=str(tmp_path / 'a.png'), img_id=7, segments_info=[]))
    os.mkfifo(tmp_path / 'b.png')
    with pytest.raises(DataError, match='b.png .image id 7.: a pipe or device'):
        LoadPanopticInstances().transform(dict(seg_map_path=str(tmp_path / 'b.png'), img_id=7, segments_info=[]))


def test_jpegs_stay_as_fast():
    """The header costs little beside the pixels."""
    data = cv2.imencode('.jpg', np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8))[1].tobytes()
    plain, ours = np.min([[seconds(mmcv.imfrombytes, data), seconds(decode_image, data)] for _ in range(15)], axis=0)
    assert ours < 2 * plain


def seconds(function, *args):
    start = time.thread_time()  # what other processes take does not count
    function(*args)
    return time.thread_time() - start


# ---------------------------------------------------------------------------------------------------- names of pictures
def test_distinct_names():
    taken = []
    for path in ('cam1/0001.jpg', 'cam2/0001.jpg', 'x/cam2/0001.jpg', '/x/cam2/0001.PNG', '0001.bmp', '../../0001.tif'):
        taken.append(distinct_name(path, taken))
    assert taken == ['0001', 'cam2_0001', 'x_cam2_0001', '0001_2', '0001_3', '0001_4']
    assert distinct_name('a/CAT.jpg', ['cat']) == 'a_CAT'  # the same file on some systems
    assert distinct_name('a\nb:c.jpg', []) == 'a_b_c'
    long = [f'{i}{"ä" * 120}.jpg' for i in (1, 2)]
    names = [distinct_name(long[0], [])]
    names.append(distinct_name(long[1], names))
    assert len(set(names)) == 2 and all(len(name.encode()) <= 200 for name in names)
