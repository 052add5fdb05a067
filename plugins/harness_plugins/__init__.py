"""The built-in methods, engine, observer and table formats.

Each is registered in the same way as a third-party plugin.
"""
