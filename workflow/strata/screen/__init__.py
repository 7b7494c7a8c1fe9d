"""The screen: which of many plans of one base loses least, from one copy of it in memory, and after training."""
