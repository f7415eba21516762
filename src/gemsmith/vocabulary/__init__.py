"""Vocabularies as files hold them: SentencePiece's `.model`, and the `tokenizer.json` converted from one."""
