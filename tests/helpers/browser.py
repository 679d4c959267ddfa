"""A headless Chromium, driven over its DevTools pipe; no package needed.

    with browser.Browser.start(tmp_path) as chromium:
      page = chromium.open(path)
      page.evaluate('document.title')
      assert page.errors == []

The browser is offline: every page has its network cut before it is opened.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import time
from typing import Any

_NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
_FLAGS = (
  '--headless=new',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--disable-default-apps',
  '--disable-dev-shm-usage',
  '--hide-scrollbars',
  '--remote-debugging-pipe',
)
# Chromium speaks on descriptors 3 and 4; a child that moves them there itself
# spares the test process a fork with code in between. By way of 10 and above:
# a descriptor that is moved onto itself stays closed at exec.
_LAUNCH = (
  'import fcntl, os, sys;'
  'r, w = (fcntl.fcntl(int(a), fcntl.F_DUPFD, 10) for a in sys.argv[1:3]);'
  'os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])'
)
_PATIENCE = 60.0

_KEYS = {
  'Tab': 9,
  'Enter': 13,
  'Escape': 27,
  ' ': 32,
  'End': 35,
  'Home': 36,
  'ArrowLeft': 37,
  'ArrowUp': 38,
  'ArrowRight': 39,
  'ArrowDown': 40,
}


def find() -> str | None:
  """Path of an installed Chromium, None without one."""
  return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
  """One running Chromium."""

  def __init__(self, process: subprocess.Popen, read: int, write: int):
    self._process, self._read, self._write = process, read, write
    self._buffer = b''
    self._next_id = 0
    self._answers: dict[int, dict] = {}
    self._pages: dict[str, Page] = {}

  @classmethod
  @contextlib.contextmanager
  def start(cls, profile: pathlib.Path):
    """Runs a Chromium with a fresh profile folder; ends it afterwards."""
    program = find()
    if program is None:
      raise FileNotFoundError('no Chromium is installed')
    child_read, write = os.pipe()
    read, child_write = os.pipe()
    command = [
      *(sys.executable, '-S', '-E', '-c', _LAUNCH),
      *(str(child_read), str(child_write), program),
      *(*_FLAGS, f'--user-data-dir={profile}', 'about:blank'),
    ]
    process = subprocess.Popen(
      command,
      pass_fds=(child_read, child_write),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(child_read)
    os.close(child_write)
    browser = cls(process, read, write)
    try:
      yield browser
      browser.call('Browser.close')
      process.wait(20)
    finally:
      process.kill()
      process.wait()
      os.close(read)
      os.close(write)

  def call(self, method: str, session: str | None = None, **params) -> dict:
    """Sends one command and waits for its answer.

    Raises:
      RuntimeError: the browser refuses it.
      TimeoutError: no answer came.
    """
    self._next_id += 1
    message: dict[str, Any] = {
      'id': self._next_id,
      'method': method,
      'params': params,
    }
    if session:
      message['sessionId'] = session
    data = json.dumps(message).encode() + b'\0'
    while data:
      data = data[os.write(self._write, data) :]
    end = time.monotonic() + _PATIENCE
    while self._next_id not in self._answers:
      self._take(end, method)
    answer = self._answers.pop(self._next_id)
    if 'error' in answer:
      raise RuntimeError(f'{method}: {answer["error"]}')
    return answer['result']

  def wait(self, done, what: str) -> None:
    """Takes events until `done()`."""
    end = time.monotonic() + _PATIENCE
    while not done():
      self._take(end, what)

  def _take(self, end: float, what: str) -> None:
    if not select.select([self._read], [], [], max(0, end - time.monotonic()))[
      0
    ]:
      raise TimeoutError(f'{what}: nothing from Chromium in {_PATIENCE:g} s')
    chunk = os.read(self._read, 1 << 20)
    if not chunk:
      raise RuntimeError(f'{what}: Chromium has gone')
    *messages, self._buffer = (self._buffer + chunk).split(b'\0')
    for raw in messages:
      message = json.loads(raw)
      if 'id' in message:
        self._answers[message['id']] = message
      elif page := self._pages.get(message.get('sessionId', '')):
        page.note(message['method'], message['params'])

  def open(
    self, path: pathlib.Path, width: int = 1280, height: int = 900, dark=False
  ) -> Page:
    """Opens a file from disk with the network off.

    Args:
      path: the file.
      width, height: of the window, in CSS pixels.
      dark: what the system prefers.
    """
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    session = self.call('Target.attachToTarget', targetId=target, flatten=True)[
      'sessionId'
    ]
    page = self._pages[session] = Page(self, session)
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      page.call(f'{domain}.enable')
    page.call(
      'Network.emulateNetworkConditions',
      offline=True,
      latency=0,
      downloadThroughput=0,
      uploadThroughput=0,
    )
    page.resize(width, height)
    page.call(
      'Emulation.setEmulatedMedia',
      features=[
        {
          'name': 'prefers-color-scheme',
          'value': 'dark' if dark else 'light',
        }
      ],
    )
    page.call('Page.navigate', url=path.resolve().as_uri())
    self.wait(lambda: page.events['Page.loadEventFired'], f'loading {path}')
    # Charts are drawn once their boxes have a size.
    page.settle()
    return page


class Page:
  """One open page.

  Attributes:
    errors: messages of the console at level error or warning, uncaught
      exceptions, and what the Content-Security-Policy blocked.
    requests: addresses asked for, the page's own and data: URLs left out.
    events: method -> how often it came.
  """

  def __init__(self, browser: Browser, session: str):
    self._browser, self._session = browser, session
    self.errors: list[str] = []
    self.requests: list[str] = []
    self.events: collections.Counter[str] = collections.Counter()

  def note(self, method: str, params: dict) -> None:
    self.events[method] += 1
    if method == 'Runtime.exceptionThrown':
      details = params['exceptionDetails']
      thrown = details.get('exception', {}).get('description', '')
      self.errors.append(thrown or details['text'])
    elif method == 'Runtime.consoleAPICalled':
      if params['type'] in ('error', 'warning', 'assert'):
        self.errors.append(json.dumps(params['args']))
    elif method == 'Log.entryAdded':
      if params['entry']['level'] in ('error', 'warning'):
        self.errors.append(params['entry']['text'])
    elif method == 'Network.requestWillBeSent':
      url = params['request']['url']
      if not url.startswith(('file:', 'data:')):
        self.requests.append(url)

  def call(self, method: str, **params) -> dict:
    return self._browser.call(method, self._session, **params)

  def evaluate(self, expression: str) -> Any:
    """The value of a JavaScript expression, promises awaited.

    Raises:
      RuntimeError: it throws.
    """
    answer = self.call(
      'Runtime.evaluate',
      expression=expression,
      returnByValue=True,
      awaitPromise=True,
    )
    if 'exceptionDetails' in answer:
      raise RuntimeError(f'{expression}: {answer["exceptionDetails"]}')
    return answer['result'].get('value')

  def settle(self) -> None:
    """Waits until what was asked for is drawn."""
    self.evaluate(
      'new Promise((done) => requestAnimationFrame(() => '
      'requestAnimationFrame(() => done(0))))'
    )

  def resize(self, width: int, height: int) -> None:
    self.call(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=False,
    )

  def press(self, key: str) -> None:
    """One key, as from a keyboard."""
    common = dict(key=key, code=key, windowsVirtualKeyCode=_KEYS[key])
    text = {'Enter': '\r', ' ': ' '}.get(key)
    extra = {'text': text} if text else {}
    self.call('Input.dispatchKeyEvent', type='keyDown', **common, **extra)
    self.call('Input.dispatchKeyEvent', type='keyUp', **common)
    self.settle()

  def point(self, selector: str, click: bool = False) -> None:
    """Moves the mouse onto the middle of an element, and clicks it."""
    where = self.evaluate(
      f'(() => {{ const n = document.querySelector({json.dumps(selector)});'
      "n.scrollIntoView({block: 'center', behavior: 'instant'});"
      'const b = n.getBoundingClientRect();'
      'return {x: b.x + b.width / 2, y: b.y + b.height / 2}; })()'
    )
    self.settle()
    self.call('Input.dispatchMouseEvent', type='mouseMoved', **where)
    if click:
      for kind in ('mousePressed', 'mouseReleased'):
        self.call(
          'Input.dispatchMouseEvent',
          type=kind,
          button='left',
          clickCount=1,
          **where,
        )
    self.settle()

  def screenshot(self, path: pathlib.Path, full: bool = True) -> None:
    """The page, in its whole length, as PNG."""
    answer = self.call(
      'Page.captureScreenshot', format='png', captureBeyondViewport=full
    )
    path.write_bytes(base64.b64decode(answer['data']))
