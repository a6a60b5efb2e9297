"""Files from the web: http and https alone, with an end to how much is read and for how long."""

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from .errors import DataError

SCHEMES = ('http://', 'https://')
MAX_DOWNLOAD = 2**28  # bytes of a picture
TIMEOUT = 20.0  # seconds that a server may be silent
DEADLINE = 600.0  # seconds for all of a file: a server could send a byte every ten seconds for ever
CHUNK = 2**18

# As urlopen, but for its handlers of file:, ftp: and data:, to which a server may redirect.
_OPENER = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.ProxyHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.UnknownHandler,
):
    _OPENER.add_handler(_handler())


def is_web(path) -> bool:
    return str(path).lower().startswith(SCHEMES)


def download(address: str, max_bytes: int = MAX_DOWNLOAD) -> Iterator[bytes]:
    """What is at an address, piece by piece.

    Args:
        address: of http or https.
        max_bytes: of all of it.

    Raises:
        DataError: why it cannot be read, without the address.
    """
    end = time.monotonic() + DEADLINE
    try:
        with _OPENER.open(
            urllib.request.Request(address, headers={'User-Agent': 'mmdet_ddetr'}), None, TIMEOUT
        ) as answer:
            length, size = answer.headers.get('Content-Length', ''), 0
            length = int(length) if length.isdecimal() else None
            _check(length or 0, max_bytes)
            while chunk := answer.read1(CHUNK):
                size += len(chunk)
                _check(size, max_bytes)
                if time.monotonic() > end:
                    raise DataError(f'not readable: not there after {DEADLINE:g} s')
                yield chunk
            if length is not None and size < length:
                raise DataError(f'not readable: the server sent {size:,} of {length:,} bytes')
    except DataError:
        raise
    except urllib.error.HTTPError as error:
        raise DataError(f'not readable: the server answers {error.code} {error.reason}') from None
    except TimeoutError:
        raise DataError(f'not readable: the server was silent for {TIMEOUT:g} s') from None
    except urllib.error.URLError as error:
        raise DataError(f'not readable: {error.reason}') from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(f'not readable: {error or type(error).__name__}') from None


def _check(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise DataError(f'more than {max_bytes / 2**20:g} MiB, which is the most that is downloaded')
