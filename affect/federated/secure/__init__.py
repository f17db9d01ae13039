"""Secure aggregation: the server learns the sum of a round's updates, and no single one of them.

SecAgg+ of Bell et al. (2020), "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead",
CCS, after Bonawitz et al. (2017), "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", CCS. Shares of secrets, their encryption and the agreement on keys are Flower's own
functions. Against a server and clients that follow the protocol and are curious.
"""
