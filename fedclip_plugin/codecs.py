"""Fewer bytes: how the difference of a tensor from what was sent out is written down.

Of every floating tensor of N values the difference ``state - sent`` travels, as plain
safetensors tensors; R is its number of rows (:func:`row_count`).  ``<key>`` is the
tensor's own name:

========  ====================================================  ==================
codec     what travels                                          bytes
========  ====================================================  ==================
``fp16``  ``<key>`` float16                                     2 N
``int8``  ``<key>`` int8, ``<key>:scale`` (R,) float32          N + 4 R
``int4``  ``<key>`` uint8, two values in a byte, the first in   less than
          the low half, + 8, deflated by zlib's Huffman codes;  N / 2 + 4 R
          ``<key>:scale`` (R,) float32
``topk``  the K = share N largest, or 1: ``<key>`` (K,) int8,   2 K + 4 + one for
          ``<key>:gap`` uint8, the number of values left out    each 255 values
          before each (255: that many and no value),            left out in a row
          ``<key>:scale`` (1,) float32
========  ====================================================  ==================

beside the safetensors header, some 70 bytes a tensor.  Other tensors travel whole.

Everything is deterministic: of equal values ``topk`` takes the first.
"""

from __future__ import annotations

from .codec import Codec
from .quantization import Fp16, Int4, Int8
from .topk import TopK

CODECS: dict[str, Codec] = {
    "fp16": Fp16(),
    "int8": Int8(),
    "int4": Int4(),
    "topk": TopK(),
}
