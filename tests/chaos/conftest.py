"""Leaves these minutes-long tests out, unless `-m chaos` asks for them."""


def pytest_collection_modifyitems(config, items):
  if 'chaos' in config.option.markexpr:
    return
  left = [item for item in items if 'chaos' not in item.keywords]
  config.hook.pytest_deselected(
    items=[item for item in items if 'chaos' in item.keywords]
  )
  items[:] = left
