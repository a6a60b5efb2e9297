"""Run a tool by its name, this package's or MMDetection's, with this package imported first.

MMDetection's tools import mmdet before they read a config, and mmdet imports compiled operators of mmcv; started this
way they find the stand-ins of an uncompiled mmcv (see ``compat``). One that is started in another way, by mim or by
``python browse_dataset.py``, finds them after ``--install-hook``.
"""

import os
import sys
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from mmdet_ddetr.compat import start_hook

PROGRAM = 'mmdet-ddetr'
USAGE = """\
usage: mmdet-ddetr TOOL [argument ...], or python -m mmdet_ddetr TOOL [argument ...]
       mmdet-ddetr --install-hook | --remove-hook

  train, test   a detector of a config
  check         a folder of labelled images
  finetune      a detector on a folder of labelled images
  predict       in pictures, videos and cameras
  explain       what a detector looks at
  export        a detector to a file that needs no OpenMMLab
  convert       checkpoints

`TOOL -h` shows its arguments. TOOL is the name of any tool of mmdet_ddetr or of MMDetection, or the path of a Python
script. Where both packages have one, mmdet_ddetr's is run; mmdet::train is MMDetection's. MMDetection's tools want the
path of a config; the name of one of mmdet_ddetr is put in as its path.

  --install-hook  with mmcv-lite, let every program of this Python environment import mmdet, mim among them
  --remove-hook   undo it
"""


SHORT = {'check': ['finetune', '--check'], 'convert': ['convert_checkpoint']}  # the tool, and its first arguments


def console() -> None:
    """The program ``mmdet-ddetr``."""
    main(sys.argv[1:])


def main(arguments: list[str]) -> None:
    """Do what the command line says; a tool's own exit is passed on."""
    if not arguments or arguments[0] in ('-h', '--help'):
        tools = [f'{package}: {" ".join(sorted(list_tools(package)))}\n' for package in ('mmdet_ddetr', 'mmdet')]
        try:
            print(USAGE, *tools, sep='\n', flush=True)
        except BrokenPipeError:  # whoever reads it has seen enough: `mmdet-ddetr --help | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at the end
    elif arguments[0] == '--install-hook':
        print(f'wrote {start_hook.install()}; `{PROGRAM} --remove-hook` undoes it')
    elif arguments[0] == '--remove-hook':
        print(f'removed {start_hook.remove()}')
    else:
        name, *rest = arguments
        tool, *first = SHORT.get(name, [name])
        run(tool, [*first, *rest], name)


def list_tools(package: str) -> dict[str, Path]:
    """The Python tools of mmdet_ddetr or mmdet, {name: path}; of two with one name the one less deep."""
    package_dir = Path(find_spec(package).origin).parent
    for root in (package_dir / '.mim' / 'tools', package_dir.parent / 'tools'):  # installed; a checkout on the path
        if root.is_dir():
            paths = sorted(root.rglob('[!_]*.py'), key=lambda path: -len(path.parts))
            return {path.stem: path for path in paths}
    return {}


def find_tool(name: str) -> Path:
    """Path of a tool: of a file itself, else by its name, or ``package::name``, here or in mmdet."""
    if Path(name).is_file():
        return Path(name)
    package, _, stem = name.removesuffix('.py').rpartition('::')
    tools = {}
    for owner in [package] if package in ('mmdet', 'mmdet_ddetr') else ['mmdet', 'mmdet_ddetr']:
        tools.update(list_tools(owner))
    if stem not in tools:
        near = get_close_matches(stem, tools, cutoff=0.5)
        raise FileNotFoundError(
            f'no tool {name!r}: neither a file nor a name of mmdet_ddetr or mmdet'
            + (f', like {", ".join(near)}' if near else f'; {PROGRAM} lists them')
        )
    return tools[stem]


def run(name: str, arguments: list[str], called: str) -> None:
    """Run a tool as ``python <its path> <arguments>`` does.

    Args:
        called: what its usage and errors call it, behind the program.
    """
    try:
        path = find_tool(name)
    except FileNotFoundError as error:
        sys.exit(f'{PROGRAM}: {error}')
    if path in list_tools('mmdet').values():
        arguments = [_config_path(argument) for argument in arguments]
        sys.path.append(str(path.parents[path.parts[::-1].index('tools')]))  # some import each other from `tools`
    own = path in list_tools('mmdet_ddetr').values()
    sys.path[0] = str(path.parent)
    sys.argv = [f'{PROGRAM} {called}' if own else str(path), *arguments]
    module = ModuleType('__main__')  # runpy would put the path in place of what the tool is called
    module.__file__ = str(path)
    before, sys.modules['__main__'] = sys.modules['__main__'], module
    try:
        exec(compile(path.read_bytes(), str(path), 'exec'), vars(module))
    finally:
        sys.modules['__main__'] = before


def _config_path(argument: str) -> str:
    from mmdet_ddetr.apis import list_configs

    configs = list_configs()
    stem = argument.removesuffix('.py')
    return str(configs[stem]) if stem in configs and not Path(argument).exists() else argument


if __name__ == '__main__':
    main(sys.argv[1:])
