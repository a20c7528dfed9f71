"""``quantlora finetune``: from a model and a text to a trained, measured adapter.

`finetune` in ``job.py`` is the whole way in one function. The rooms it goes through:

    options/    what can be chosen, one option for each field
    data/       sources, records, examples, dataset: from files to batches
    model/      from a folder or hub id to a wrapped model; the demonstration's own
    run/        the output folder: claimed, resumed, never overwritten; limits; processes
    training/   the Trainer, its checkpoints, progress and speed
    reporting/  what is measured and left behind, with its pictures
"""
