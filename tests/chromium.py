"""Headless Chromium, driven over the pipe of its DevTools protocol: no driver and no Python package needed.

Any Chromium or Chrome on the PATH will do, for instance that of ``apt-get install chromium``.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time

EXECUTABLE = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
TIMEOUT = 60  # seconds for one answer, on a busy machine


class Chromium:
    """A browser with one tab. ``events`` holds what the browser has told without being asked."""

    def __init__(self, profile, size=(1200, 900)):
        child_reads, self._write = os.pipe()
        self._read, child_writes = os.pipe()
        command = [EXECUTABLE, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--no-first-run']
        command += ['--remote-debugging-pipe', f'--user-data-dir={profile}', '--window-size={},{}'.format(*size)]
        self._process = subprocess.Popen(  # the protocol's pipes are the file descriptors 3 and 4
            ['bash', '-c', f'exec "$@" 3<&{child_reads} 4>&{child_writes}', 'bash', *command],
            pass_fds=(child_reads, child_writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_reads)
        os.close(child_writes)
        self._buffer, self._number, self._session, self.events = b'', 0, None, []
        target = self.send('Target.createTarget', url='about:blank')['targetId']
        self._session = self.send('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Network', 'Log'):
            self.send(f'{domain}.enable')

    def send(self, method, **params):
        """Send a command, wait for its result."""
        self._number += 1
        message = dict(id=self._number, method=method, params=params)
        if self._session:
            message['sessionId'] = self._session
        os.write(self._write, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._receive()
            if answer.get('id') != self._number:
                self.events.append(answer)
            elif 'error' in answer:
                raise RuntimeError(f'{method}: {answer["error"]["message"]}')
            else:
                return answer['result']

    def _receive(self):
        deadline = time.monotonic() + TIMEOUT
        while b'\0' not in self._buffer:
            if not select.select([self._read], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutError(f'no answer from {EXECUTABLE} within {TIMEOUT} s')
            chunk = os.read(self._read, 1 << 16)
            if not chunk:
                raise RuntimeError(f'{EXECUTABLE} ended with code {self._process.wait()}')
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b'\0')
        return json.loads(message)

    def open(self, url):
        self.send('Page.navigate', url=url)
        while not any(event.get('method') == 'Page.loadEventFired' for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression):
        """The JSON value of a JavaScript expression in the page."""
        result = self.send('Runtime.evaluate', expression=expression, returnByValue=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def mouse(self, kind, x, y):
        """``'Moved'``, ``'Pressed'`` or ``'Released'``, at CSS pixels of the window."""
        button = dict(button='left', clickCount=1) if kind != 'Moved' else {}
        self.send('Input.dispatchMouseEvent', type=f'mouse{kind}', x=x, y=y, **button)

    def click(self, x, y):
        for kind in ('Moved', 'Pressed', 'Released'):
            self.mouse(kind, x, y)

    def press(self, key):
        """Press a key by its DOM name, such as ``'Tab'``; a space is ``' '``."""
        code = {'Tab': 9, ' ': 32, 'ArrowLeft': 37, 'ArrowUp': 38, 'ArrowRight': 39, 'ArrowDown': 40}[key]
        text = dict(text=key) if key == ' ' else {}
        for kind in ('keyDown', 'keyUp'):
            self.send('Input.dispatchKeyEvent', type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def close(self):
        with contextlib.suppress(RuntimeError, OSError):  # it may be gone already
            self.send('Browser.close')
        self._process.wait(TIMEOUT)
        os.close(self._write)
        os.close(self._read)
