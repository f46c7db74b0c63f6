"""Where `.tflite` files are run: the processor here, others through emulators, a browser.

A runtime is a command that takes a job: a JSON file that names models, the images to feed each, and how often
to time them. `worker.py` does jobs in any Python that has LiteRT, `sample_apps/web/run.mjs` in Chromium.
"""
