"""The judgement: one module per chapter of the policy, one pure function and one row per requirement.

A function takes :class:`gatepost.verify.registry.Seen` (observations of one listener at one address, or of all of them)
and returns a :class:`gatepost.verify.model.Finding`. It opens no socket and reads no clock but the observation's.
"""
