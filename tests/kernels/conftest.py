"""Leaves these compilations out, unless `-m aot` asks for them."""


def pytest_collection_modifyitems(config, items):
  if 'aot' in config.option.markexpr:
    return
  left = [item for item in items if 'aot' not in item.keywords]
  config.hook.pytest_deselected(
    items=[item for item in items if 'aot' in item.keywords]
  )
  items[:] = left
