"""Adapters on disk, in PEFT's format: `save_adapter`, `load_adapter`, `check_vllm`.

    <folder>/adapter_config.json          PEFT's config
    <folder>/adapter_model.safetensors    the tensors
    <folder>/quantlora.json               what PEFT has no field for (`side_file`)
    <folder>/<adapter>/...                the same for an adapter not called "default"

docs/adapter-files.md describes the format and what a kill during a save leaves behind.
"""
