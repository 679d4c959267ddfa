"""Leaves out what has a job of its own, unless `-m` asks for it."""

_JOBS = ('aot', 'gpu')


def pytest_collection_modifyitems(config, items):
  jobs = {job for job in _JOBS if job not in config.option.markexpr}
  left = [item for item in items if jobs.isdisjoint(item.keywords)]
  config.hook.pytest_deselected(
    items=[item for item in items if not jobs.isdisjoint(item.keywords)]
  )
  items[:] = left
