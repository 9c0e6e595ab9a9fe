"""What pyproject.toml cannot say yet without a warning: the compiled kernels, which are optional. Everything else is there.

Where they cannot be built (another compiler, another processor), torch's operators do their work.
"""

from pathlib import Path

from setuptools import Extension, setup

KERNELS = Path("gradscope/kernels")

setup(
    ext_modules=[
        Extension(
            "gradscope.kernels._kernels",
            [str(KERNELS / "kernels.c")],
            depends=[str(header) for header in sorted(KERNELS.glob("*.h"))],
            # Threads are those of the OpenMP that torch brings: nothing is linked.
            extra_compile_args=[
                "-std=gnu11",
                "-O3",
                "-ffp-contract=fast",
                "-fno-math-errno",
                "-fno-trapping-math",
                "-fopenmp",
            ],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
