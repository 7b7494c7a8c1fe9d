"""Publish: a variant outside the store, with a card that says what it is: as a folder, and on the Hugging Face hub."""
