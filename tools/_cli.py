"""What the tools share. Nothing heavy is imported before the arguments are parsed, for a fast ``-h``."""

import argparse
import io
import math
import os
import sys
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

CFG_OPTIONS_HELP = (
    'override settings of the config, as key=value: optim_wrapper.optimizer.lr=1e-4 train_cfg.max_epochs=12; '
    'lists as key="[a,b]" or key=a,b'
)

IMAGE_SIZE_HELP = "longest side in px of the images that the model sees; the config's other sizes change with it"


def number(number_type, what, is_right):
    """A type for arguments: a finite int or float for which ``is_right``; the error says that it is not ``what``."""

    def parse(text):
        value = number_type(text)
        if not (math.isfinite(value) and is_right(value)):
            raise argparse.ArgumentTypeError(f'{text} is not {what}')
        return value

    parse.__name__ = number_type.__name__  # argparse names it in its errors
    return parse


def positive(number_type):
    """A type for arguments: an int or float above 0."""
    return number(number_type, 'positive', lambda value: value > 0)


def image_size(text):
    """A type for arguments: a side of images in px, from one cell of the deepest map to what memory can hold."""
    return number(int, 'a side from 32 to 8192 px', lambda value: 32 <= value <= 8192)(text)


class Parser(argparse.ArgumentParser):
    """One whose errors are a sentence, without all options in front of it.

    They say what is near an option that there is none of, and which option got too many values.
    """

    _words, _rest = (), ()

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)  # an option that is added later could take over a short form

    def parse_known_args(self, args=None, namespace=None):
        self._words = [str(word) for word in (sys.argv[1:] if args is None else args)]
        parsed, self._rest = super().parse_known_args(args, namespace)
        return parsed, self._rest

    def error(self, message):
        if self._rest:  # argparse: unrecognized arguments
            message = self._too_many() or message
        # without the dashes, which are alike in all of them
        options = [option[2:] for action in self._actions for option in action.option_strings if option[:2] == '--']
        names = (word.partition('=')[0][2:] for word in self._words if word.startswith('--'))
        for name in names:
            near = get_close_matches(name.replace('_', '-'), options, n=1)
            if near and name not in options:
                message += f'; there is no --{name}, did you mean --{near[0]}?'
        self.exit(2, f'{self.prog}: error: {message}\n')

    def check_score(self, option, value):
        if value is not None and not 0 <= value <= 1:
            self.error(f'{option}: must be a number from 0 to 1, got {value:g}')

    def _too_many(self):
        """Of a tool that takes options only: the first option that got more values than it takes."""
        if not all(action.option_strings for action in self._actions):
            return None
        given = []
        for word in self._words:
            if word.startswith('-'):
                option, equals, value = word.partition('=')
                given.append((option, [value] * bool(equals)))
            elif given:
                given[-1][1].append(word)
        takes = {option: action.nargs for action in self._actions for option in action.option_strings}
        for option, values in given:
            most = {None: 1, '?': 1}.get(takes.get(option, '*'), takes.get(option))
            if isinstance(most, int) and len(values) > most:
                count = f'{most or "no"} value{"s" * (most != 1)}'
                return f'{option} takes {count}, got {len(values)}: {" ".join(values)}'
        return None


def add_common_arguments(parser):
    """Add the arguments that mim and MMDetection's users expect of both tools."""
    parser.add_argument('--work-dir', metavar='DIR', help='for logs and checkpoints (default: work_dirs/<config name>)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help=CFG_OPTIONS_HELP)
    parser.add_argument('--image-size', type=image_size, metavar='PX', help=IMAGE_SIZE_HELP)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch.distributed.launch passes the second spelling, older launchers the first; torchrun sets LOCAL_RANK itself.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by launchers')


def add_optimize(parser, what):
    """Add ``--optimize [TYPE]``."""
    parser.add_argument(
        '--optimize',
        nargs='?',
        const='float32',
        choices=['float32', 'bfloat16', 'float16'],
        help=f'{what}, in that type (default: float32)',
    )


def read_config(name, options=None):
    """Return the config of that name or path with ``--cfg-options`` merged in.

    Raises:
        ConfigError: A mistake in either; :func:`run` shows it.
    """
    from mmdet_ddetr.apis.configs import ConfigError, get_config, merge_options

    try:
        cfg = get_config(name)
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from None
    merge_options(cfg, options or [])
    return cfg


@contextmanager
def naming(option, *known):
    """End the program at one of these errors with a sentence that names the option."""
    try:
        yield
    except known as error:
        from mmdet_ddetr.apis import mistakes

        sys.exit(f'{Path(sys.argv[0]).name}: {option}: {mistakes.explain(error) or error}')


def writable_folder(option, path, later=False):
    """The folder of an option, made if missing; where nothing can be written, the program ends with a sentence.

    With ``later``, it is not made yet.
    """
    from mmdet_ddetr.files import make_folder

    with naming(option, OSError):
        make_folder(path, later)
    return Path(path)


def run(main, *known):
    """Call ``main``; a mistake of the user ends in a sentence, and so do the errors ``known``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')  # a file's name may hold any bytes
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError:
        raise
    except Exception as error:
        from mmdet_ddetr.apis import mistakes

        mistakes.end(error, *known)


def load_config(args):
    """Return the config named by ``args.config``, with the common arguments merged in.

    Args:
        args (argparse.Namespace): ``config``, a path or a name, and what :func:`add_common_arguments` adds.

    Returns:
        mmengine.config.Config: With ``launcher`` and ``work_dir`` set.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))

    cfg = read_config(args.config, args.cfg_options)
    if args.image_size:
        from mmdet_ddetr.apis.image_size import set_image_size

        set_image_size(cfg, args.image_size)
    if args.launcher == 'pytorch' and 'WORLD_SIZE' not in os.environ:
        sys.exit(
            f'{Path(sys.argv[0]).name}: --launcher pytorch: no launcher has started this process; use '
            'tools/dist_train.sh CONFIG GPUS or tools/dist_test.sh, or leave it out'
        )
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    return cfg
