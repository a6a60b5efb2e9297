"""Show a detector on a web page: drop an image, move the threshold, hover a box to see what it looked at.

python tools/webdemo.py CONFIG CHECKPOINT
"""

import errno
import socket
import sys
from pathlib import Path

from _cli import Parser, read_config, run

LOOPBACK = ('127.0.0.1', 'localhost')


def parse_args(argv=None):
    parser = Parser(
        description='Show a detector on a web page: drop an image, move the threshold, hover a box to see what it '
        'looked at',
        epilog='The page asks for no password and no other server. See docs/inference.md.',
    )
    parser.add_argument('config', help='path of a config, or the name of one of this package')
    parser.add_argument('checkpoint', help='weights, of any layout in docs/checkpoints.md')
    parser.add_argument(
        '--host',
        default=LOOPBACK[0],
        help='address to listen on (default: %(default)s: this machine alone); 0.0.0.0 is all the network',
    )
    parser.add_argument('--port', type=int, default=8000, help='0: any that is free (default: %(default)s)')
    parser.add_argument(
        '--threshold', type=float, default=0.3, metavar='SCORE', help="the slider's at first (default: %(default)s)"
    )
    parser.add_argument('--device', help='cpu, cuda, ... (default: a GPU if there is one)')
    parser.add_argument(
        '--max-mb', type=float, default=20, metavar='MB', help='of an uploaded file (default: %(default)s)'
    )
    parser.add_argument(
        '--max-megapixels', type=float, default=40, metavar='N', help='of an uploaded image (default: %(default)s)'
    )
    parser.add_argument(
        '--waiting', type=int, default=8, metavar='N', help='images that may wait for their turn (default: %(default)s)'
    )
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override settings of the config')
    args = parser.parse_args(argv)
    for name, least, most in (
        ('port', 0, 65535),
        ('threshold', 0, 1),
        ('max_mb', 0.001, 1024),
        ('max_megapixels', 0.001, 134),
        ('waiting', 0, 1000),
    ):
        if not least <= getattr(args, name) <= most:
            parser.error(
                f'--{name.replace("_", "-")}: must be a number from {least:g} to {most:g}, got {getattr(args, name):g}'
            )
    return args


def listen(host, port):
    """A socket there, before anything that takes time."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ':' in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sys.exit(f'{Path(sys.argv[0]).name}: --port {port} is in use; take another, or 0 for any that is free')
        sys.exit(f'{Path(sys.argv[0]).name}: --host {host} --port {port}: {error.strerror}')


def main(argv=None):
    args = parse_args(argv)
    try:
        import uvicorn

        from mmdet_ddetr.web import Limits, Viewer, make_app
    except ModuleNotFoundError as error:
        sys.exit(f'{Path(sys.argv[0]).name}: {error.name} is missing: pip install starlette uvicorn')
    from mmdet_ddetr.apis import DDetrInferencer

    listening = listen(args.host, args.port)
    inferencer = DDetrInferencer(
        read_config(args.config, args.cfg_options), args.checkpoint, device=args.device, show_progress=False
    )
    wide = args.host in ('0.0.0.0', '::', '')
    app = make_app(
        Viewer(inferencer, round(args.max_megapixels * 1e6)),
        title=f'{Path(args.config).stem} · {Path(args.checkpoint).name}',
        threshold=args.threshold,
        limits=Limits(bytes=round(args.max_mb * 2**20), waiting=args.waiting),
        hosts=('*',) if wide else (args.host, *LOOPBACK),
    )
    port = listening.getsockname()[1]
    if args.host not in (*LOOPBACK, '::1'):
        print('everyone who reaches this machine can use the page: it asks for no password', file=sys.stderr)
    host = socket.gethostname() if wide else f'[{args.host}]' if ':' in args.host else args.host
    print(f'http://{host}:{port}  (Ctrl-C ends it)', flush=True)
    config = uvicorn.Config(
        app,
        log_level='warning',
        lifespan='off',
        ws='none',
        server_header=False,
        proxy_headers=False,
        limit_concurrency=args.waiting + 64,
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == '__main__':
    run(main, ValueError, OSError)
