"""``quantlora finetune``: from a model and a text to a trained, measured adapter.

`finetune` in ``job.py`` is the whole way in one function; the other files are its stops:

    options, option_fields  what can be chosen; every field is one option of the command
    run_folder  the output folder: claimed, resumed, never overwritten
    demo_model, demo_text, cache  what is used when nothing is named
    records, examples, dataset  from files to batches
    base_model, quantization, adaptation  from a folder or hub id to a wrapped model
    trainer, checkpoints, progress  Transformers' Trainer on a wrapped model
    evaluation, report, plot, card  what is measured and left behind
    limits, processes, show, terminal  what the machine must have; what is said, and to whom
"""
