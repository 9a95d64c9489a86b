"""Private inference between two parties.

Read downward: crypto, transport, lowering, protocol, offline, serving, engines.
"""
