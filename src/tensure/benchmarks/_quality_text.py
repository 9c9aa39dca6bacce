"""A text of many kinds for `decode-quality`: prose, numbers, code, a letter, a list. Our own words."""

from __future__ import annotations

from typing import Final

__all__ = ["QUALITY_TEXT"]

QUALITY_TEXT: Final = """\
The bakery on Harbour Street opens at five. By then the ovens have been hot for two hours, the first
trays of rye are cooling by the window, and Marta has written the prices on the slate: rolls 0.40, rye
3.20, plum cake 2.75 a slice. She rounds nothing. When a customer pays with a twenty for a loaf and three
rolls, she says "that is four forty, so fifteen sixty back" before the drawer is open.

# How to read the meter

1. Switch the pump off and wait until the needle rests.
2. Note the figure in the black frame, not the red one. Red digits are tenths of a cubic metre.
3. Subtract last month's figure. If the difference is negative, the counter has gone round: add 100,000.

    def difference(now: int, before: int, digits: int = 5) -> int:
        \"\"\"Cubic metres since the last reading; the counter may have gone round once.\"\"\"
        step = now - before
        return step if step >= 0 else step + 10**digits

Dear Jonas, thank you for the drawings. The bridge looks lighter than I feared, and the second pier
stands where the old ferry landed, which will please my father. Two questions. Does the deck move when
the wind comes from the west at thirty metres a second? And who will paint it in ten years? I ask because
nobody asked last time, and the railing has been brown ever since. Greetings to Anna; we shall see you in
March. Yours, Ilse.

Iron melts at 1538 degrees Celsius, copper at 1085, lead at 327. An alloy of lead and tin melts lower
than either of them, at 183 degrees, because the two crystals disturb each other. This is why solder
flows while the wire stays solid, and why a joint that was moved while it cooled looks grey: the crystals
could not arrange themselves.

| town    | rain, mm | days |
| Bergen  | 2,495    | 239  |
| Almeria | 200      | 26   |

A proof that there is no largest prime takes four lines. Suppose there were finitely many. Multiply all
of them and add one. The result leaves the remainder one when divided by any prime on the list, so either
it is prime itself or one of its factors is missing from the list. In both cases the list was not
complete. The argument is older than paper, and it has never needed an erratum.
"""
