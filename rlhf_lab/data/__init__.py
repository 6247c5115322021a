"""Training data: rows of files and of the Hub become texts, and texts become token ids.

A row passes through the modules in this order:

- `readers`: read rows from a .json, .jsonl, .csv or .parquet file, or from a data set on the Hub.
- `hub`: download or stream the rows of a data set on the Hub. It is used by `readers`.
- `formats`: recognise the format of a row (plain, conversational, ShareGPT, Alpaca, Anthropic HH, comparisons) and turn
  it into a prompt and responses.
- `conversations`: write the turns of a row as text by the chat template, and shorten conversations.
- `preferences`: load preference pairs, and tokenise them to `rlhf_lab.batch.Pairs`.
- `sft`: load and tokenise prompts with target responses, labelled responses, and prompts alone.
- `loading`: read and tokenise any of these rows for a command, once. The ids of large data are stored by `token_store`.

The two functions that most users need are `preferences.load_preferences` and `preferences.tokenise`.
"""
