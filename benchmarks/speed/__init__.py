"""What a step costs with each tool, as a ratio to a plain step, on the same models and the same work.

``python -m benchmarks.speed --help`` lists what it does; ``docs/speed.md`` is written from its results.
"""
