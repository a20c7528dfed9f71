"""``quantlora finetune``: from a model and a text to a trained, measured adapter.

`finetune` in ``job.py`` is the whole way in one function; the other files are its stops:

    options, material_options, option_fields  what can be chosen, one option for each field
    run_folder, open_run  the output folder: claimed, resumed, never overwritten
    prepared_job  everything loaded and checked; what is done with it
    demo_model, demo_text, cache  what is used when nothing is named
    sources, records, examples, dataset  from files to batches
    base_model, compute_dtype, quantization, adaptation  from a folder or hub id to a wrapped model
    trainer, trainers, measured_trainer, checkpoints, progress, speed  the training
    evaluation, report, card  what is measured and left behind
    report_page, charts, plot, chart  its pictures
    limits, processes, show, terminal  what the machine must have; what is said, and to whom
"""
