"""Leaves these minutes-long tests out, unless `-m fuzz` asks for them."""


def pytest_collection_modifyitems(config, items):
  if 'fuzz' in config.option.markexpr:
    return
  left = [item for item in items if 'fuzz' not in item.keywords]
  config.hook.pytest_deselected(
    items=[item for item in items if 'fuzz' in item.keywords]
  )
  items[:] = left
