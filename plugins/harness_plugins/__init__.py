"""The built-in methods, engine, observer and table formats.

Each is a plugin like any stranger's.
"""
