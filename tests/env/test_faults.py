"""Each fault that users report: the environment report and `wrap` name it, with one remedy."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.env.faulty_environment import Environment

BNB_4BIT = "bitsandbytes_4bit"
OPTIMUM = "gptqmodel requires optimum version `1.24.0` or higher to be installed."

#: A library that is there by its metadata, and fails as the real one does on a wrong machine.
STUB = """
class nn:
    class Linear4bit: ...
    class Linear8bitLt: ...
"""
NO_EXLLAMA = "raise ImportError('ExLlama kernel not available')"
BROKEN_IMPORT = 'raise OSError("libcudart.so.12: cannot open shared object file: No such file")'

Fault = tuple[str, Callable[[Environment], None], str, str]

#: Name -> backend, how to make it, what the reason says, what the remedy says.
MISSING: dict[str, Fault] = {
    "bitsandbytes missing": (
        BNB_4BIT,
        lambda env: env.remove("bitsandbytes"),
        "bitsandbytes is not installed.",
        'pip install "bitsandbytes>=',
    ),
    "bitsandbytes too old": (
        BNB_4BIT,
        lambda env: env.put("bitsandbytes", "0.37.0", {"bitsandbytes/__init__.py": ""}),
        "bitsandbytes 0.37.0 is installed, but bitsandbytes>=",
        'pip install "bitsandbytes>=',
    ),
    "bitsandbytes of no readable version": (
        BNB_4BIT,
        lambda env: env.put("bitsandbytes", "about half", {"bitsandbytes/__init__.py": ""}),
        "bitsandbytes about half is installed, but bitsandbytes>=",
        'pip install "bitsandbytes>=',
    ),
    "auto-gptq too old": (
        "gptq",
        lambda env: env.put("auto-gptq", "0.4.2", {"auto_gptq/__init__.py": ""}),
        "Found an incompatible version of auto-gptq. Found version 0.4.2, "
        "but only versions above 0.5.0 are supported",
        'pip install "auto-gptq>=0.5.0"',
    ),
    "gptqmodel too old": (
        "gptq",
        lambda env: env.put("gptqmodel", "1.9.0", {"gptqmodel/__init__.py": ""}),
        "Found an incompatible version of gptqmodel. Found version 1.9.0",
        'pip install "gptqmodel>=2.0.0"',
    ),
    "optimum missing": (
        "gptq",
        lambda env: env.put("gptqmodel", "7.6.0", {"gptqmodel/__init__.py": ""}),
        OPTIMUM,
        'pip install "optimum>=1.24.0"',
    ),
    "optimum too old": (
        "gptq",
        lambda env: [
            env.put("gptqmodel", "7.6.0", {"gptqmodel/__init__.py": ""}),
            env.put("optimum", "1.20.0", {"optimum/__init__.py": ""}),
        ],
        OPTIMUM,
        'pip install "optimum>=1.24.0"',
    ),
    "auto-gptq with transformers 5": (
        "gptq",
        lambda env: [
            env.put("auto-gptq", "0.7.1", {"auto_gptq/__init__.py": ""}),
            env.put("transformers", "5.0.0", {"transformers/__init__.py": ""}),
        ],
        "auto-gptq cannot be imported with transformers 5.0.0: it needs transformers<5.",
        'pip install "auto-gptq>=0.5.0" "transformers<5"',
    ),
    "no GPTQ library": (
        "gptq",
        lambda env: None,
        "gptqmodel is not installed. Or: auto-gptq is not installed.",
        'pip install "gptqmodel>=2.0.0" "optimum>=1.24.0"',
    ),
    "scipy missing": (
        "normalfloat",
        lambda env: env.remove("scipy"),
        "The required package 'scipy' is not installed. Please install it to continue.",
        "pip install",
    ),
}

#: What only running the backend can tell.
RUNNING: dict[str, Fault] = {
    "bitsandbytes without Linear4bit": (
        BNB_4BIT,
        lambda env: env.put(
            "bitsandbytes", "0.50.2", {"bitsandbytes/__init__.py": "class nn: ..."}
        ),
        "has no nn.Linear4bit",
        "pip install --force-reinstall",
    ),
    "no kernel for this GPU": (
        BNB_4BIT,
        lambda env: env.put(
            "bitsandbytes",
            "0.50.2",
            {
                "bitsandbytes/__init__.py": "raise RuntimeError('CUDA error: no kernel image is "
                "available for execution on the device')"
            },
        ),
        "has no kernels for this GPU's compute capability",
        "pip install --upgrade --force-reinstall --no-cache-dir bitsandbytes",
    ),
    "CUDA of another version": (
        BNB_4BIT,
        lambda env: env.put("bitsandbytes", "0.50.2", {"bitsandbytes/__init__.py": BROKEN_IMPORT}),
        "was built for another CUDA version",
        "pip install --upgrade --force-reinstall --no-cache-dir bitsandbytes",
    ),
    "ExLlama kernels missing": (
        "gptq",
        lambda env: [
            env.put("gptqmodel", "7.6.0", {"gptqmodel/__init__.py": NO_EXLLAMA}),
            env.put("optimum", "2.3.0", {"optimum/__init__.py": ""}),
        ],
        "the ExLlama kernels are not available",
        "load the model with GPTQConfig(bits=..., use_exllama=False)",
    ),
    "compiled for another torch": (
        BNB_4BIT,
        lambda env: env.put(
            "bitsandbytes",
            "0.50.2",
            {"bitsandbytes/__init__.py": "raise ImportError('x.so: undefined symbol: _ZN3c10')"},
        ),
        "was compiled for another version of torch",
        "pip install --upgrade --force-reinstall --no-cache-dir bitsandbytes",
    ),
}


#: One of each library; the others, a process each, are tried in the second stage.
FAST = ("auto-gptq with transformers 5", "bitsandbytes of no readable version", "scipy missing")


@pytest.mark.parametrize(
    "fault", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in MISSING]
)
def test_report_and_wrap_name_the_fault_with_one_remedy(environment, fault):
    backend, make, reason, fix = MISSING[fault]
    make(environment)
    found = environment.ask(backend)
    assert found["status"] == "UNAVAILABLE"
    assert reason in found["reason"]
    assert fix in found["fix"]
    assert found["kind"] == "MissingLibraryError"
    assert found["error"] == f"{found['reason']}\n{found['fix']}"
    assert found["plain"] == "LoraLinear"


@pytest.mark.slow
@pytest.mark.parametrize("fault", RUNNING)
def test_a_deep_report_and_wrap_name_the_fault_with_one_remedy(environment, fault):
    backend, make, reason, fix = RUNNING[fault]
    make(environment)
    assert environment.ask(backend)["status"] == "READY"
    found = environment.ask(backend, deep=True)
    assert found["status"] == "UNAVAILABLE"
    assert reason in found["reason"]
    assert reason in found["error"]
    assert fix in found["fix"]
    assert fix in found["error"]
    assert found["plain"] == "LoraLinear"


def test_with_both_gptq_libraries_the_report_says_which_is_used(environment):
    environment.put("gptqmodel", "7.6.0", {"gptqmodel/__init__.py": ""})
    environment.put("optimum", "2.3.0", {"optimum/__init__.py": ""})
    environment.put("auto-gptq", "0.7.1", {"auto_gptq/__init__.py": ""})
    environment.put("transformers", "4.57.6", {"transformers/__init__.py": ""})
    found = environment.ask("gptq")
    assert found["status"] == "READY"
    assert "with gptqmodel where they find it" in found["reason"]
