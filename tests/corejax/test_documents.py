"""Pages that several threads ask for at once."""

from concurrent import futures
import threading

import pytest

from corejax import errors
from corejax.data import documents as documents_lib
from helpers import pdfs

N_PAGES, N_THREADS = 6, 8


@pytest.fixture
def path(tmp_path):
  pytest.importorskip('pypdfium2', reason='PDFs need the extra `data`')
  shade = [((0, 0, 0), (20, 20, 90, 60 + 10 * n)) for n in range(N_PAGES)]
  return pdfs.write(tmp_path / 'a.pdf', [[mark] for mark in shade])


def _at_once(ask, numbers):
  with futures.ThreadPoolExecutor(N_THREADS) as threads:
    return [threads.submit(ask, number) for number in numbers]


def test_threads_get_what_one_gets_and_a_page_is_drawn_once(path, monkeypatch):
  alone = documents_lib.Documents()
  expected = [alone.render(path, page) for page in range(N_PAGES)]
  assert len(set(expected)) == N_PAGES
  drawn, draw = [], documents_lib.Documents._draw

  def noted(self, path, page):
    drawn.append(page)
    return draw(self, path, page)

  monkeypatch.setattr(documents_lib.Documents, '_draw', noted)
  shared = documents_lib.Documents()
  asked = [n % N_PAGES for n in range(5 * N_PAGES)]
  found = _at_once(lambda page: shared.render(path, page), asked)
  assert [f.result() for f in found] == [expected[page] for page in asked]
  assert sorted(drawn) == list(range(N_PAGES))


def test_who_waits_for_a_page_that_fails_is_told_why(path, monkeypatch):
  shared = documents_lib.Documents()
  waiting, draw = threading.Event(), documents_lib.Documents._draw

  def slow(self, path, page):
    waiting.wait(5)
    return draw(self, path, page)

  monkeypatch.setattr(documents_lib.Documents, '_draw', slow)
  threading.Timer(0.1, waiting.set).start()
  for one in _at_once(lambda page: shared.render(path, page), [99] * 4):
    with pytest.raises(errors.Rejected, match='page 99 is outside'):
      one.result()
  assert shared.render(path, 0)  # and nothing is left behind


def test_a_page_is_packed_while_another_is_drawn(path, monkeypatch):
  """Packing takes as long as drawing; it must not hold pdfium's lock."""
  shared = documents_lib.Documents()
  free, draw = [], documents_lib.Documents._draw

  def take():
    if free_now := documents_lib._LOCK.acquire(timeout=2):
      documents_lib._LOCK.release()
    free.append(free_now)

  class Picture:
    def save(self, file, *_, **__):
      other = threading.Thread(target=take)
      other.start()
      other.join()
      file.write(b'packed')

  monkeypatch.setattr(
    documents_lib.Documents,
    '_draw',
    lambda *args: (draw(*args), Picture())[1],
  )
  assert shared.render(path, 0) == b'packed'
  assert free == [True]
