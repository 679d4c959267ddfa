"""Messages are one line, whatever they quote."""

import pytest

from corejax import errors


@pytest.mark.parametrize(
  'text, line',
  [
    ("x='1'; expected 2", "x='1'; expected 2"),
    ('größer als 3 × 4', 'größer als 3 × 4'),
    ('a\nb\tc\r\0', r'a\nb\tc\r\x00'),
    ('\x1b[31mred', r'\x1b[31mred'),
    ('\ud800 half', r'\ud800 half'),
    ('\u202eturned\u2028', r'\u202eturned\u2028'),
  ],
)
def test_what_would_break_a_line_is_written_out(text, line):
  assert str(errors.UserError(text)) == line
  assert str(errors.UserError(str(errors.UserError(text)))) == line
  rejected = errors.Rejected(errors.Reason.BAD_BOX, text)
  assert (rejected.detail, str(rejected)) == (line, f'bad box: {line}')


def test_the_remedy_of_a_long_message_is_kept():
  message = str(errors.UserError(f'{"x" * 10**6}; fetch it again'))
  assert len(message) < 4200 and message.endswith('; fetch it again')
