"""SPIFFE IDs and trust domains: the one strict parser for every place an identity can come from (rules M-1 to M-6).

Shared by both planes. Imports nothing but the error tree.
"""
