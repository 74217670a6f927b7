"""How an application hears of the engine, one framework a file."""
