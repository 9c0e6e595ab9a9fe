"""The layers and shapes that other libraries test their per-sample gradients on, tried on gradscope.

The ranges are facts read from the public test suites of Opacus (commit 88919b66, ``opacus/tests/grad_samples``) and BackPACK
(``test/extensions/firstorder/firstorder_settings.py``); the code is our own.
"""
