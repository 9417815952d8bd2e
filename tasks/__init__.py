"""The tasks that come with dnirnn, a module or a package each."""

TASKS = {
    "char-lm": "dnirnn.tasks.char_lm",
    "word-lm": "dnirnn.tasks.word_lm",
    "copy": "dnirnn.tasks.copy",
    "repeat-copy": "dnirnn.tasks.repeat_copy",
    "copy-memory": "dnirnn.tasks.copy_memory",
    "adding": "dnirnn.tasks.adding",
    "pixels": "dnirnn.tasks.pixels",
    "signal": "dnirnn.tasks.signal",
    "digits": "dnirnn.tasks.digits",
    "images": "dnirnn.tasks.images",
}
