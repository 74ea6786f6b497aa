"""What sessions of ONNX Runtime have in common here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime as ort


def options(threads: int) -> ort.SessionOptions:
    """Options of a session whose runs take `threads` threads, and which logs nothing but errors.

    Models in 8 bits give the same on every processor: on those with AVX2 but without VNNI, ONNX Runtime adds up the
    products of unsigned and signed bytes in 16 bits, which overflow, unless it is told to go by unsigned bytes
    (`kOrtSessionOptionsAvx2PrecisionMode`; a fifth more time there, nothing elsewhere).
    """
    import onnxruntime as ort  # 20 MB: only policies with a neural signal pay

    made = ort.SessionOptions()
    made.intra_op_num_threads = threads
    made.inter_op_num_threads = 1
    made.log_severity_level = 3
    made.add_session_config_entry("session.x64quantprecision", "1")
    return made
